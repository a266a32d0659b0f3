#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each, one on each CPU.
#
#   scripts/fuzz.sh 3s
set -euo pipefail
cd "$(dirname "$0")/.."
export TIME_EACH=${1:?usage: scripts/fuzz.sh DURATION}

# one DIRECTORY TARGET
one() {
	local log
	log=$(mktemp)
	trap 'rm -f "$log"' EXIT
	echo "fuzz $1 $2 $TIME_EACH"
	if ! go test -run '^$' -fuzz "^$2\$" -fuzztime "$TIME_EACH" -fuzzminimizetime 1x -parallel 1 "$1" </dev/null >"$log" 2>&1; then
		# The go command sometimes reports the end of the time itself as a failure
		# (golang/go#48591); a real one leaves the input that caused it.
		if grep -q 'Failing input written' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
			cat "$log"
			exit 1
		fi
	fi
}
export -f one

grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r dir; do
	for target in $(grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | awk '{print $2}' | sort -u); do
		echo "$dir $target"
	done
done | xargs -P "$(nproc)" -L 1 bash -c 'one "$@"' fuzz
