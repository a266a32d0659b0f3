# Sourced by soft-roce/guest-kernel.sh, arm/kernel.sh and arm/native.sh: packages of Debian, unpacked
# and not installed.

# Debian 12, with kernel 6.1. The suite is named, so that every machine gets the same.
guest_suite=bookworm

# debian_lists DIR ARCHITECTURE makes DIR, and package lists of its own there: those of the machine may
# be absent, outdated, of another system or architecture, or not for this user. It sets the array
# debian_apt, the arguments with which apt-get and apt-cache use them.
debian_lists() {
	local dir=$1 arch=$2 tool keys=/usr/share/keyrings/debian-archive-keyring.gpg
	local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} me
	me=$(basename "$0")
	for tool in apt-get apt-cache dpkg-deb flock; do
		command -v $tool >/dev/null || {
			echo "$me: $tool is missing; fix: run it on Debian or a system derived from it" >&2
			return 1
		}
	done
	[ -r $keys ] || {
		echo "$me: $keys is missing; fix: apt-get install debian-archive-keyring" >&2
		return 1
	}
	echo "$me: fetching packages from $mirror (once)" >&2
	rm -rf "$dir"
	mkdir -p "$dir"/{state/lists/partial,archives/partial,root} || return
	: >"$dir/status"
	echo "deb [signed-by=$keys] $mirror $guest_suite main" >"$dir/sources.list"
	# What the machine's configuration runs after an update (cleaning caches) is not meant.
	printf '#clear %s;\n' APT::Update::Pre-Invoke APT::Update::Post-Invoke APT::Update::Post-Invoke-Success >"$dir/apt.conf"
	debian_apt=(-qq -c "$dir/apt.conf" -o "Dir::State=$dir/state" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir"
		-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3)
	timeout 300 apt-get "${debian_apt[@]}" update >&2 || debian_failed
}

debian_failed() {
	echo "$(basename "$0"): the packages could not be downloaded; fix: DEBIAN_MIRROR=URL, or the proxy settings of apt" >&2
	return 1
}

debian_unpack() {
	local deb
	for deb in "$1"/archives/*.deb; do dpkg-deb -x "$deb" "$1/root" || return; done
}

# fetch_kernel_package DIR ARCHITECTURE METAPACKAGE [PACKAGE…] makes DIR/root: the kernel that
# METAPACKAGE depends on, and the packages, unpacked.
fetch_kernel_package() {
	local dir=$1 arch=$2 meta=$3 version debian_apt
	shift 3
	debian_lists "$dir" "$arch" || return
	{
		version=$(apt-cache "${debian_apt[@]}" depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1) &&
			[ -n "$version" ] &&
			(cd "$dir/archives" && timeout 600 apt-get "${debian_apt[@]}" download "$version" "$@")
	} >&2 || debian_failed || return
	debian_unpack "$dir"
}

# fetch_with_dependencies DIR ARCHITECTURE PACKAGE… makes DIR/root: the packages and all that they
# depend on, unpacked.
fetch_with_dependencies() {
	local dir=$1 arch=$2 debian_apt
	shift 2
	debian_lists "$dir" "$arch" || return
	timeout 600 apt-get "${debian_apt[@]}" install -y --download-only --no-install-recommends "$@" >&2 || debian_failed || return
	debian_unpack "$dir"
}
