#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each.
#
#   scripts/fuzz.sh 3s
set -euo pipefail
cd "$(dirname "$0")/.."
time_each=${1:?usage: scripts/fuzz.sh DURATION}

grep -rlE --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz\w+' "$dir"/*_test.go | awk '{print $2}' | sort -u | while read -r target; do
		echo "fuzz $dir $target $time_each"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time_each" -fuzzminimizetime 5s "$dir" </dev/null
	done
done
