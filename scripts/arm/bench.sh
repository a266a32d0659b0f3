#!/usr/bin/env bash
# Runs benchmarks of a package in an emulated arm64 machine whose clock counts instructions:
# a nanosecond there is one instruction, and every run gives the same figures.
#
#   scripts/arm/bench.sh OUT PACKAGE BENCH-PATTERN [go build flags…]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: scripts/arm/bench.sh OUT PACKAGE PATTERN [FLAGS…]} package=$2 pattern=$3
shift 3
. scripts/arm/kernel.sh
command -v qemu-system-aarch64 >/dev/null || {
	echo "arm: qemu-system-aarch64 is missing; fix: apt-get install qemu-system-arm" >&2
	exit 1
}
fetch_kernel .cache/arm
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0
GOARCH=arm64 go build -o "$work/init" ./scripts/arm/guest
GOARCH=arm64 go test -c "$@" -o "$work/program" "$package"
go run ./scripts/arm/guest "$work/initramfs" "$work/init" "$work/program" \
	-test.run=NONE "-test.bench=$pattern" -test.benchtime=200x -test.cpu=1
timeout 300 qemu-system-aarch64 -machine virt -cpu neoverse-n1 -smp 1 -m 1024 -nographic -no-reboot \
	-icount shift=0,sleep=off -kernel .cache/arm/vmlinuz -initrd "$work/initramfs" \
	-append "console=ttyAMA0 quiet panic=-1" </dev/null >"$work/console"
tr -d '\r' <"$work/console" >"$out"
grep -q 'guest: end: <nil>' "$out" || {
	tail -n 20 "$out" >&2
	echo "arm: the benchmark did not end in order" >&2
	exit 1
}
