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
# shellcheck source=common.sh
. "$root/scripts/soft-roce/common.sh"

echo "== device suite, event loop, and the user-space engine as a peer, on $device"
(cd "$root/rdma/verbs" && "$dir/verbs.test" -test.timeout 900s -test.v) |
	grep -E '^ *(---|FAIL|PASS|ok|panic)|^ +[a-z_]+\.go:' || exit 1

millrace=$dir/millrace
work=$(mktemp -d)
running=()
finish() {
	# Its status would become the script's.
	if [ ${#running[@]} -gt 0 ]; then kill "${running[@]}" 2>/dev/null || true; fi
	wait || true
	rm -rf "$work"
}
trap finish EXIT
input=$root/bench/sample/logs.txt
count=$(wc -l <"$input")

# serve NAME COMMAND… starts a server, and sets url to what it says it listens at.
serve() {
	local name=$1 i
	shift
	"$@" >"$work/$name.ready" 2>"$work/$name.log" &
	running+=($!)
	url=
	for ((i = 0; i < 600; i++)); do
		url=$(sed -n 's/^ready //p' "$work/$name.ready")
		if [ -n "$url" ] || ! kill -0 "${running[-1]}" 2>/dev/null; then break; fi
		sleep 0.1
	done
	[ -n "$url" ] || {
		echo "the $name did not start:"
		cat "$work/$name.log"
		exit 1
	}
}
# roundtrip TOPIC URL COMMAND… stores the sample and reads it again; COMMAND runs millrace.
roundtrip() {
	local topic=$1 at=$2
	shift 2
	timeout 120 "$@" "$millrace" produce --to "$at" --topic "$topic" --input "$input"
	timeout 120 "$@" "$millrace" consume --from "$at" --topic "$topic" --count "$count" >"$work/out"
	cmp "$input" "$work/out"
	echo "$count messages came back as they were, over $at"
}
stop() {
	kill "${running[@]}"
	wait "${running[@]}" || true
	running=()
}

echo "== produce and consume over $device"
serve broker "$millrace" broker --listen "rdma://127.0.0.1:0?device=$device" --data "$work/data1"
case $url in *device=*) ;; *) url="$url?device=$device" ;; esac
roundtrip t "$url" env
stop

netns=${MILLRACE_RDMA_PEER_NETNS-}
if [ -z "$netns" ]; then exit 0; fi
here=$(describe "$device" | sed -n 's/^address=//p')
there=$MILLRACE_RDMA_PEER_ADDRESS
inside=(ip netns exec "$netns")
bare() { sed 's/?.*//' <<<"$1"; }

echo "== a proxy on the user-space engine, a broker on $device"
serve broker "$millrace" broker --listen "rdma://$here:0?device=$device" --data "$work/data2"
serve proxy "${inside[@]}" "$millrace" proxy --listen tcp://127.0.0.1:0 --broker "$(bare "$url")?device=softroce%2Bpacket:peer"
roundtrip t "$url" "${inside[@]}"
stop

echo "== a proxy on $device, a broker on the user-space engine"
serve broker "${inside[@]}" "$millrace" broker --listen "rdma://$there:0?device=softroce%2Bpacket:peer" --data "$work/data3"
serve proxy "$millrace" proxy --listen tcp://127.0.0.1:0 --broker "$(bare "$url")?device=$device"
roundtrip t "$url" env
stop
