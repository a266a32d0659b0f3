# Sourced by guest.sh: the guest's kernel and first file system.

# shellcheck source=../debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

# What the guest needs to see its root; the rest is loaded from there on demand.
guest_modules=(virtio_pci 9pnet_virtio 9p overlay)

# prepare_kernel CACHE INIT makes CACHE/kernel: vmlinuz, lib/modules and an initramfs whose
# first process is INIT. Several may call it at a time.
prepare_kernel() {
	local cache=$1 init=$2 stamp lock
	mkdir -p "$cache" || return
	exec {lock}>"$cache/lock"
	flock "$lock"
	if [ ! -e "$cache/kernel/vmlinuz" ]; then
		fetch_kernel "$cache" || return
	fi
	stamp=$(cat "$init" "${BASH_SOURCE[0]}" | cksum)
	if [ "$stamp" != "$(cat "$cache/kernel/stamp" 2>/dev/null)" ]; then
		make_initramfs "$cache/kernel" "$init" || return
		echo "$stamp" >"$cache/kernel/stamp"
	fi
	exec {lock}>&-
}

# fetch_kernel makes CACHE/kernel but for the initramfs.
fetch_kernel() {
	local cache=$1 new=$1/kernel.new version
	if [ "$(uname -m)" != x86_64 ]; then
		echo "guest.sh: made for x86-64 machines; this one is $(uname -m)" >&2
		return 1
	fi
	fetch_kernel_package "$new" amd64 linux-image-amd64 busybox-static || return
	mv "$new"/root/boot/vmlinuz-* "$new/vmlinuz" &&
		mv "$new/root/lib" "$new/lib" &&
		mv "$(find "$new/root" -path '*bin/busybox' | head -n 1)" "$new/busybox" || return
	version=$(ls "$new/lib/modules")
	(cd "$new" && ./busybox depmod -b "$new" "$version") || return
	rm -rf "$new"/{root,state,archives,status,sources.list,apt.conf,pkgcache.bin,srcpkgcache.bin,cache}
	rm -rf "$cache/kernel"
	mv "$new" "$cache/kernel"
}

# make_initramfs packs busybox, INIT and the modules that lead to the root.
make_initramfs() {
	local k=$1 init=$2 tree=$1/tree version m path dep
	version=$(ls "$k/lib/modules") || return
	rm -rf "$tree"
	mkdir -p "$tree"/{bin,sbin,proc,sys,dev,job,host,rw,root,"lib/modules/$version"} || return
	cp "$k/busybox" "$tree/bin/busybox" && cp "$init" "$tree/init" && chmod 755 "$tree/init" || return
	ln -s ../bin/busybox "$tree/sbin/modprobe" # the kernel loads modules through it
	for m in "${guest_modules[@]}"; do
		# A line of modules.dep: the module, a colon, all that it needs.
		path=$(grep -E "(^|/)${m}\.ko:" "$k/lib/modules/$version/modules.dep") || {
			grep -q "/${m}\.ko$" "$k/lib/modules/$version/modules.builtin" && continue
			echo "guest.sh: kernel $version has no module $m" >&2
			return 1
		}
		for dep in ${path//:/ }; do
			mkdir -p "$tree/lib/modules/$version/$(dirname "$dep")"
			cp "$k/lib/modules/$version/$dep" "$tree/lib/modules/$version/$dep" || return
		done
	done
	"$k/busybox" depmod -b "$tree" "$version" || return
	(cd "$tree" && find . | "$k/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$k/initramfs.new" || return
	mv "$k/initramfs.new" "$k/initramfs"
	rm -rf "$tree"
}
