# Sourced by guest.sh: the guest's kernel and first file system.

# Debian 12's kernel 6.1. The suite is named, so that every machine gets the same.
guest_suite=bookworm
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

# fetch_kernel downloads and unpacks the kernel. It uses package lists of its own: those of
# the machine may be absent, outdated, of another system, or not for this user.
fetch_kernel() {
	local cache=$1 new=$1/kernel.new version tool keys=/usr/share/keyrings/debian-archive-keyring.gpg
	local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
	if [ "$(uname -m)" != x86_64 ]; then
		echo "guest.sh: made for x86-64 machines; this one is $(uname -m)" >&2
		return 1
	fi
	for tool in apt-get apt-cache dpkg-deb flock; do
		command -v $tool >/dev/null || {
			echo "guest.sh: $tool is missing; fix: run it on Debian or a system derived from it" >&2
			return 1
		}
	done
	[ -r $keys ] || {
		echo "guest.sh: $keys is missing; fix: apt-get install debian-archive-keyring" >&2
		return 1
	}
	echo "guest.sh: fetching a kernel from $mirror (once)" >&2
	rm -rf "$new"
	mkdir -p "$new"/{state/lists/partial,archives/partial,root} || return
	: >"$new/status"
	echo "deb [signed-by=$keys] $mirror $guest_suite main" >"$new/sources.list"
	# What the machine's configuration runs after an update (cleaning caches) is not meant.
	printf '#clear %s;\n' APT::Update::Pre-Invoke APT::Update::Post-Invoke APT::Update::Post-Invoke-Success >"$new/apt.conf"
	local apt=(-qq -c "$new/apt.conf" -o "Dir::State=$new/state" -o "Dir::State::status=$new/status" -o "Dir::Cache=$new"
		-o "Dir::Etc::SourceList=$new/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3)
	{
		timeout 300 apt-get "${apt[@]}" update &&
			version=$(apt-cache "${apt[@]}" depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1) &&
			[ -n "$version" ] &&
			(cd "$new/archives" && timeout 600 apt-get "${apt[@]}" download "$version" busybox-static)
	} >&2 || {
		echo "guest.sh: the kernel could not be downloaded; fix: DEBIAN_MIRROR=URL, or the proxy settings of apt" >&2
		return 1
	}
	local deb
	for deb in "$new"/archives/*.deb; do dpkg-deb -x "$deb" "$new/root" || return; done
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
