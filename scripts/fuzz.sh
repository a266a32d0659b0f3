#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each.
#
#   scripts/fuzz.sh 3s
set -euo pipefail
cd "$(dirname "$0")/.."
time_each=${1:?usage: scripts/fuzz.sh DURATION}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | awk '{print $2}' | sort -u | while read -r target; do
		echo "fuzz $dir $target $time_each"
		if ! go test -run '^$' -fuzz "^$target\$" -fuzztime "$time_each" -fuzzminimizetime 1x "$dir" </dev/null >"$log" 2>&1; then
			# The go command sometimes reports the end of the time itself as a failure
			# (golang/go#48591); a real one leaves the input that caused it.
			if grep -q 'Failing input written' "$log" || ! grep -q 'context deadline exceeded' "$log"; then
				cat "$log"
				exit 1
			fi
		fi
	done
done
