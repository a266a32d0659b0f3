# Sourced by soft-roce/guest-kernel.sh and arm/kernel.sh: a kernel of Debian, unpacked and not
# installed.

# Debian 12's kernel 6.1. The suite is named, so that every machine gets the same.
guest_suite=bookworm

# fetch_debian DIR ARCHITECTURE METAPACKAGE [PACKAGE…] makes DIR/root: the kernel that METAPACKAGE
# depends on, and the packages, unpacked. It uses package lists of its own: those of the machine may
# be absent, outdated, of another system or architecture, or not for this user.
fetch_debian() {
	local dir=$1 arch=$2 meta=$3 version tool deb keys=/usr/share/keyrings/debian-archive-keyring.gpg
	local mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} me
	me=$(basename "$0")
	shift 3
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
	echo "$me: fetching a kernel from $mirror (once)" >&2
	rm -rf "$dir"
	mkdir -p "$dir"/{state/lists/partial,archives/partial,root} || return
	: >"$dir/status"
	echo "deb [signed-by=$keys] $mirror $guest_suite main" >"$dir/sources.list"
	# What the machine's configuration runs after an update (cleaning caches) is not meant.
	printf '#clear %s;\n' APT::Update::Pre-Invoke APT::Update::Post-Invoke APT::Update::Post-Invoke-Success >"$dir/apt.conf"
	local apt=(-qq -c "$dir/apt.conf" -o "Dir::State=$dir/state" -o "Dir::State::status=$dir/status" -o "Dir::Cache=$dir"
		-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o APT::Sandbox::User=root
		-o Acquire::Languages=none -o Acquire::Retries=3)
	{
		timeout 300 apt-get "${apt[@]}" update &&
			version=$(apt-cache "${apt[@]}" depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\).*/\1/p' | head -n 1) &&
			[ -n "$version" ] &&
			(cd "$dir/archives" && timeout 600 apt-get "${apt[@]}" download "$version" "$@")
	} >&2 || {
		echo "$me: the kernel could not be downloaded; fix: DEBIAN_MIRROR=URL, or the proxy settings of apt" >&2
		return 1
	}
	for deb in "$dir"/archives/*.deb; do dpkg-deb -x "$deb" "$dir/root" || return; done
}
