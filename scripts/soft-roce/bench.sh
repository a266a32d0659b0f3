#!/usr/bin/env bash
# What `make bench-softroce` runs where there is a kernel Soft-RoCE device (with-device.sh).
#
#   bench.sh DIR [ARGUMENTS OF millrace bench]
#
# DIR holds millrace and verbs.bench, the test binary of rdma/verbs, both built with the tag
# verbs. With arguments: millrace bench alone. Without: round trips, and produce at a fixed
# rate, through a proxy and without one, the latter also with loops that spin. Where perftest is
# installed, ib_send_lat and ib_send_bw tell what C on bare verbs reaches, in turns with round
# trips of messages and with our device alone. The last lines set medians beside each other.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"
dir=$(cd "$1" && pwd)
millrace=$dir/millrace
shift
device=${MILLRACE_RDMA_DEVICE:?run it through with-device.sh}
out=${OUT:-$(mktemp -d)}
if [ $# -gt 0 ]; then
	exec "$millrace" bench --json "$out/bench.json" "$@"
fi
text=$(describe "$device")
address=$(sed -n 's/^address=//p' <<<"$text")
index=$(sed -n 's/^gid_index=//p' <<<"$text")

# perftest PROGRAM ARGUMENTS… prints the columns of its result.
perftest() {
	local server result
	timeout 60 "$@" -d "$device" -x "$index" >/dev/null 2>&1 &
	server=$!
	sleep 1
	result=$(timeout 60 "$@" -d "$device" -x "$index" "$address" 2>/dev/null | grep -E '^ *128 ') || true
	kill $server 2>/dev/null || true
	wait $server 2>/dev/null || true
	echo "$result"
}
# ours NAME UNIT prints a figure of our device alone, without loop and message protocol, as
# perftest measures it.
ours() {
	"$dir/verbs.bench" -test.run '^$' -test.bench "$1" -test.benchtime 0.7s |
		awk -v unit="$2" '/^Benchmark/ { for (i = 3; i < NF; i++) if ($(i + 1) == unit) print $i }'
}
# field KEY reads lines of one row each, and prints that key's value, or its median if it is
# a distribution.
field() {
	sed -n "s/.*\"$1\":\({\"p50\":\)\?\"\?\([^,}\"]*\).*/\2/p"
}
rows() { tr -d ' \n' <"$out/$1.json" | sed 's/{"workload"/\n&/g'; }
# A machine that emulates changes its pace by the second, and programs settle for fast or
# slow by chance: short readings in turns, and the median of the rounds' ratios.
round() {
	local lat bw rt rate message
	lat=$(perftest ib_send_lat -s 128 -n 5000 | awk '{ print 2 * $5 }') # of one way, the typical one a median
	rt=$(ours BareRoundTrip median-ns | awk '{ print $1 / 1000 }')
	"$millrace" bench --json "$out/round.json" --quick --duration 2s --transports "rdma:$device" --workload rtt >/dev/null 2>&1
	message=$(rows round | grep '"layer":"message"' | field rtMicros)
	bw=$(perftest ib_send_bw -s 128 -n 20000 | awk '{ print $5 * 1e6 }')
	rate=$(ours BareSendRate messages/s)
	printf '128 B round trip, µs: messages %.1f, device alone %.1f, ib_send_lat %.1f; messages/s: device alone %.0f, ib_send_bw %.0f\n' \
		"$message" "$rt" "$lat" "$rate" "$bw"
	echo "$message $rt $lat $rate $bw" >>"$out/rounds"
}
rounds() {
	command -v ib_send_lat >/dev/null || {
		[ -s "$out/rounds" ] || echo "perftest is not installed: no comparison with C on bare verbs"
		: >"$out/rounds"
		return
	}
	local i
	for ((i = 0; i < $1; i++)); do round; done
}
# bench NAME ARGUMENTS…: one run of millrace bench.
bench() {
	local name=$1
	shift
	# A rate that no transport is near its limit at, in an emulated guest.
	"$millrace" bench --json "$out/$name.json" --transports "tcp,rdma:$device" --topology local --rate 100 "$@"
}
# column N [M] prints the median of the rounds' column N, or of its ratios to column M.
column() {
	awk -v n="$1" -v m="${2-0}" '$n > 0 && (!m || $m > 0) { print m ? $n / $m : $n }' "$out/rounds" | sort -n |
		awk '{ v[NR] = $1 } END { if (NR) print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

# beside WHAT MINE OTHER WHO sets two figures beside each other.
beside() {
	[ -z "$2" ] || [ -z "$3" ] || awk -v what="$1" -v mine="$2" -v other="$3" -v who="$4" \
		'BEGIN { if (other > 0) printf "%s: %.1f; %s %.1f: × %.2f\n", what, mine, who, other, mine / other }'
}
# tcp NAME KEY WHAT sets what the run found beside TCP, of rows of messages; where a run has
# several kinds, the last: each message a request of its own.
tcp() {
	local of other
	of() { rows "$1" | grep '"layer":"message"' | grep "\"device\":\"$3\"" | tail -n 1 | field "$2"; }
	other() { beside "$3, µs" "$(of "$1" "$2" "$device")" "$(of "$1" "$2" "$4")" "$5"; }
	other "$@" net "ordinary TCP"
	other "$@" epoll "TCP on the same loop"
}

rm -f "$out/rounds"
rounds 3
bench rtt --workload rtt
bench produce --workload produce
bench direct --workload produce --direct
bench direct-latency --workload produce --direct --idle latency
rounds 4

echo
echo "medians, and what they are of the other's:"
if [ -s "$out/rounds" ]; then
	printf '128 B round trip of messages, µs: %.1f; ib_send_lat %.1f: × %.2f\n' "$(column 1)" "$(column 3)" "$(column 1 3)"
	printf '128 B round trip, device alone, µs: %.1f; ib_send_lat %.1f: × %.2f\n' "$(column 2)" "$(column 3)" "$(column 2 3)"
	printf '128 B messages/s, device alone: %.0f; ib_send_bw %.0f: × %.2f\n' "$(column 4)" "$(column 5)" "$(column 4 5)"
fi
tcp rtt rtMicros "128 B round trip of messages"
tcp produce sendRtMicros "produce, proxy to broker and back"
tcp direct sendRtMicros "produce, client to broker and back"
tcp direct-latency sendRtMicros "the same, loops that spin"
