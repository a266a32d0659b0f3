#!/usr/bin/env bash
# Predicts how many cycles a Neoverse N2 takes for the inner loops of serialize's arm64 kernels.
#
#   scripts/arm/mca.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
mca=$(command -v llvm-mca-19 || command -v llvm-mca || true)
objdump=$(command -v llvm-objdump-19 || command -v llvm-objdump || true)
[ -n "$mca" ] && [ -n "$objdump" ] || {
	echo "arm: llvm-mca or llvm-objdump is missing; fix: apt-get install llvm-19" >&2
	exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CGO_ENABLED=0 GOARCH=arm64 go test -c -o "$work/program" ./serialize
symbol=github.com/millrace/millrace/serialize

# loop FUNCTION: the instructions from the target of its first backward branch to that branch;
# all of them, where there is none.
loop() {
	"$objdump" -d --no-show-raw-insn --no-leading-headers --disassemble-symbols="$symbol.$1.abi0" "$work/program" |
		awk '$1 ~ /^[0-9a-f]+:$/ {
			at = $1; sub(":", "", at); line[++n] = $0; index_of[at] = n
			sub(/^[ \t]*[0-9a-f]+:[ \t]*/, "", line[n])
			if ($2 ~ /^(cbnz|b\.|tbnz)/) { target = $0; sub(/ <.*/, "", target); sub(/.*0x/, "", target); if (!from && target in index_of) { from = index_of[target]; to = n - 1 } }
		}
		END {
			if (!from) { from = 1; to = n }
			for (i = from; i <= to; i++) if (line[i] !~ /^(ret|udf|nop)/) { sub(/<.*/, "", line[i]); print line[i] }
		}'
}

printf '%-12s %8s %14s %10s %14s\n' kernel records instructions cycles cycles/record
while read -r name records; do
	loop "$name" >"$work/loop.s"
	"$mca" -mtriple=aarch64 -mcpu=neoverse-n2 -iterations=100 "$work/loop.s" 2>/dev/null |
		awk -v name="$name" -v records="$records" '/^Instructions:/ { i = $2 / 100 } /^Total Cycles:/ { c = $3 / 100 }
			END { printf "%-12s %8s %14.0f %10.1f %14.2f\n", name, records, i, c, c / records }'
done <<'LOOPS'
pack8 16
pack16 16
addBlocks8 32
addBlocks16 32
prefix8 32
prefix16 32
crc3 1.5
LOOPS
echo "crc3: 192 bytes an iteration, reckoned as 1.5 records of 128 bytes"
