#!/usr/bin/env bash
# Installs the Debian packages that a make target uses, as root or through
# passwordless sudo; otherwise says what is missing and how to get it. It never
# fails: the pure-Go build needs none of them.
#
#   scripts/deps.sh build|bench|test|softroce|arm
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

build=(gcc libc6-dev pkg-config libdpdk-dev libibverbs-dev)
case "${1:-}" in
build) wanted=("${build[@]}") ;;
bench) wanted=("${build[@]}" iproute2) ;;
test) wanted=("${build[@]}" dpdk-dev iproute2 nftables python3-scapy qemu-user-static gcc-aarch64-linux-gnu debian-archive-keyring tshark) ;;
arm) wanted=(qemu-user-static qemu-system-arm debian-archive-keyring llvm-19) ;;
softroce)
	wanted=(gcc libc6-dev libibverbs-dev libibverbs1 ibverbs-providers iproute2 perftest)
	# A guest, where this kernel has no rdma_rxe.
	[ "$(scripts/soft-roce/status.sh | sed -n 's/^rdma_rxe=//p')" != absent ] || wanted+=(qemu-system-x86 debian-archive-keyring)
	;;
*)
	echo "usage: scripts/deps.sh build|bench|test|softroce|arm" >&2
	exit 2
	;;
esac

purpose() {
	case "$1" in
	libdpdk-dev | pkg-config) echo "ports of libdpdk" ;;
	gcc | libc6-dev) echo "race detector, ports of libdpdk" ;;
	dpdk-dev) echo "tests against dpdk-testpmd" ;;
	iproute2) echo "network namespaces, Soft-RoCE devices" ;;
	libibverbs-dev | libibverbs1 | ibverbs-providers) echo "RDMA devices of the kernel" ;;
	perftest) echo "RDMA figures to compare with" ;;
	qemu-system-x86) echo "Soft-RoCE in a guest" ;;
	debian-archive-keyring) echo "packages that are unpacked: a guest's kernel, arm64 libraries" ;;
	qemu-user-static) echo "arm64 tests" ;;
	gcc-aarch64-linux-gnu) echo "arm64 build with libdpdk and libibverbs" ;;
	qemu-system-arm) echo "arm64 benchmarks" ;;
	llvm-19) echo "predictions for Neoverse N2" ;;
	python3-scapy | tshark) echo "tests against other decoders of RoCEv2" ;;
	nftables) echo "tests with packet loss" ;;
	esac
}

say() { echo "deps: $*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
	say "not a Debian system: install by its own means what these Debian packages hold: ${wanted[*]}"
	exit 0
fi

missing_of() {
	local p
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
	done
}

mapfile -t missing < <(missing_of "${wanted[@]}")
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
	if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		as_root=(sudo -n)
	else
		for p in "${missing[@]}"; do say "missing: $p ($(purpose "$p"))"; done
		say "not root and no passwordless sudo; to install: sudo apt-get install --no-install-recommends ${missing[*]}"
		say "going on without"
		exit 0
	fi
fi

# Another apt may hold the lock: wait for it, but not for ever.
apt() {
	timeout 300 "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

install() { apt install -y --no-install-recommends "$@"; }

update() {
	local try
	for try in 1 2 3 4 5 6; do
		apt update && return 0
		# The lock of the package lists is not waited for by apt-get itself.
		[ "$try" -lt 6 ] && sleep 5
	done
	return 1
}

say "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! install "${missing[@]}" >"$log" 2>&1; then
	# No package lists yet, or outdated ones.
	{ update && install "${missing[@]}"; } >>"$log" 2>&1
fi
mapfile -t still < <(missing_of "${missing[@]}")
if [ ${#still[@]} -gt 1 ]; then # one that cannot be had shall not keep the others away
	for p in "${still[@]}"; do install "$p" >>"$log" 2>&1; done
	mapfile -t still < <(missing_of "${missing[@]}")
fi
if [ ${#still[@]} -gt 0 ]; then
	tail -n 5 "$log" >&2
	for p in "${still[@]}"; do say "could not install: $p ($(purpose "$p"))"; done
	say "to try again: apt-get update && apt-get install --no-install-recommends ${still[*]}"
	say "going on without"
fi
exit 0
