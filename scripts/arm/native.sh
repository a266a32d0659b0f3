#!/usr/bin/env bash
# Builds the program with libdpdk and libibverbs for arm64, on another machine: compiled and linked
# against Debian's packages of that architecture, which are unpacked into .cache/arm once and not
# installed. Where qemu-user is here, the program is started.
#
#   scripts/arm/native.sh OUT [go build flags…]
#
# Exit status 3: it cannot be built here; standard error says why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: scripts/arm/native.sh OUT [FLAGS…]}
shift
# shellcheck source=../debian.sh
. scripts/debian.sh
cc=aarch64-linux-gnu-gcc triplet=aarch64-linux-gnu
for tool in $cc:gcc-aarch64-linux-gnu pkg-config:pkg-config; do
	command -v "${tool%%:*}" >/dev/null || {
		echo "${tool%%:*} is missing; fix: apt-get install --no-install-recommends ${tool##*:}" >&2
		exit 3
	}
done

mkdir -p .cache/arm
root=$PWD/.cache/arm/root
exec {lock}>.cache/arm/root.lock
flock "$lock"
if [ ! -e "$root" ]; then
	fetch_with_dependencies "$PWD/.cache/arm/packages" arm64 libdpdk-dev libibverbs-dev libc6-dev || exit 3
	# Links to places in a system's root are meant in this one.
	find .cache/arm/packages/root -type l -lname '/*' -printf '%p\t%l\n' | while IFS=$'\t' read -r link to; do
		ln -sfn "$(realpath -ms --relative-to="$(dirname "$link")" ".cache/arm/packages/root$to")" "$link"
	done
	mv .cache/arm/packages/root "$root"
	rm -rf .cache/arm/packages
fi
exec {lock}>&-

export PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_LIBDIR=$root/usr/lib/$triplet/pkgconfig:$root/usr/share/pkgconfig
export CGO_CFLAGS="-O2 -g --sysroot=$root" CGO_CFLAGS_ALLOW=-moutline-atomics
export CGO_LDFLAGS="-O2 -g --sysroot=$root -Wl,-rpath-link,$root/usr/lib/$triplet -Wl,-rpath-link,$root/lib/$triplet"
echo "GOARCH=arm64 go build -tags dpdk,verbs ./cmd/millrace"
CGO_ENABLED=1 GOARCH=arm64 CC=$cc go build -tags dpdk,verbs -o "$out" "$@" ./cmd/millrace
if command -v qemu-aarch64-static >/dev/null; then
	LD_LIBRARY_PATH='' qemu-aarch64-static -L "$root" "$out" --version
fi
