#!/usr/bin/env bash
# What `make test-softroce` runs where there is a kernel Soft-RoCE device (with-device.sh).
#
#   test.sh DIR
#
# DIR holds verbs.test, the test binary of rdma/verbs, and millrace, both built with the
# tag verbs. Tests that find no device fail.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=$(cd "$1" && pwd)
device=${MILLRACE_RDMA_DEVICE:?run it through with-device.sh}

echo "== device suite, event loop, and the user-space engine as a peer, on $device"
(cd "$root/rdma/verbs" && "$dir/verbs.test" -test.timeout 900s -test.v) |
	grep -E '^ *(---|FAIL|PASS|ok|panic)|^ +[a-z_]+\.go:' || exit 1

echo "== produce and consume over $device"
work=$(mktemp -d)
trap 'kill "${broker:-}" 2>/dev/null; wait; rm -rf "$work"' EXIT
"$dir/millrace" broker --listen "rdma://127.0.0.1:0?device=$device" --data "$work/data" >"$work/ready" 2>"$work/log" &
broker=$!
url=
for ((i = 0; i < 300; i++)); do
	url=$(sed -n 's/^ready //p' "$work/ready")
	if [ -n "$url" ] || ! kill -0 $broker 2>/dev/null; then break; fi
	sleep 0.1
done
[ -n "$url" ] || { echo "the broker did not start:"; cat "$work/log"; exit 1; }
case $url in *device=*) ;; *) url="$url?device=$device" ;; esac
input=$root/bench/sample/logs.txt
count=$(wc -l <"$input")
timeout 120 "$dir/millrace" produce --to "$url" --topic t --input "$input"
timeout 120 "$dir/millrace" consume --from "$url" --topic t --count "$count" >"$work/out"
cmp "$input" "$work/out"
echo "$count messages came back as they were, over $url"
