# Sourced by bench.sh: the kernel of the guest.

# shellcheck source=../debian.sh
. "$(dirname "${BASH_SOURCE[0]}")/../debian.sh"

# fetch_kernel CACHE makes CACHE/vmlinuz, once. Several may call it at a time.
fetch_kernel() {
	local cache lock
	mkdir -p "$1" && cache=$(cd "$1" && pwd) || return
	exec {lock}>"$cache/lock"
	flock "$lock"
	if [ ! -e "$cache/vmlinuz" ]; then
		fetch_kernel_package "$cache/new" arm64 linux-image-arm64 || return
		mv "$cache"/new/root/boot/vmlinuz-* "$cache/vmlinuz" && rm -rf "$cache/new" || return
	fi
	exec {lock}>&-
}
