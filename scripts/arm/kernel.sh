# Sourced by bench.sh: the kernel of the guest.

# Debian 12's kernel 6.1. The suite is named, so that every machine gets the same.
guest_suite=bookworm

# fetch_kernel CACHE makes CACHE/vmlinuz, once. It uses package lists of its own: those of the
# machine are of another architecture. Several may call it at a time.
fetch_kernel() {
	local cache new version tool lock keys=/usr/share/keyrings/debian-archive-keyring.gpg
	local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
	mkdir -p "$1" && cache=$(cd "$1" && pwd) || return
	new=$cache/new
	exec {lock}>"$cache/lock"
	flock "$lock"
	[ ! -e "$cache/vmlinuz" ] || return 0
	for tool in apt-get apt-cache dpkg-deb flock; do
		command -v $tool >/dev/null || {
			echo "arm: $tool is missing; fix: run it on Debian or a system derived from it" >&2
			return 1
		}
	done
	[ -r $keys ] || {
		echo "arm: $keys is missing; fix: apt-get install debian-archive-keyring" >&2
		return 1
	}
	echo "arm: fetching a kernel from $mirror (once)" >&2
	rm -rf "$new"
	mkdir -p "$new"/{state/lists/partial,archives/partial,root} || return
	: >"$new/status"
	echo "deb [signed-by=$keys] $mirror $guest_suite main" >"$new/sources.list"
	# What the machine's configuration runs after an update (cleaning caches) is not meant.
	printf '#clear %s;\n' APT::Update::Pre-Invoke APT::Update::Post-Invoke APT::Update::Post-Invoke-Success >"$new/apt.conf"
	local apt=(-qq -c "$new/apt.conf" -o "Dir::State=$new/state" -o "Dir::State::status=$new/status" -o "Dir::Cache=$new"
		-o "Dir::Etc::SourceList=$new/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3)
	{
		timeout 300 apt-get "${apt[@]}" update &&
			version=$(apt-cache "${apt[@]}" depends linux-image-arm64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1) &&
			[ -n "$version" ] &&
			(cd "$new/archives" && timeout 600 apt-get "${apt[@]}" download "$version") &&
			dpkg-deb -x "$new"/archives/linux-image-*.deb "$new/root"
	} >&2 || {
		echo "arm: the kernel could not be had; fix: DEBIAN_MIRROR=URL, or the proxy settings of apt" >&2
		return 1
	}
	mv "$new"/root/boot/vmlinuz-* "$cache/vmlinuz" && rm -rf "$new"
}
