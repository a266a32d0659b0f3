#!/usr/bin/env bash
# What `make bench-softroce` runs where there is a kernel Soft-RoCE device (with-device.sh).
#
#   bench.sh DIR [ARGUMENTS OF millrace bench]
#
# DIR holds millrace and verbs.bench, the test binary of rdma/verbs, both built with the tag
# verbs. With arguments: millrace bench alone. Without: round trips; produce at a fixed rate,
# through a proxy and without one, the latter also with loops that spin; and the bare device in
# turns with perftest (ib_send_lat, ib_send_bw), where that is installed: what C on bare verbs
# reaches. The last lines set medians beside each other.
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
# A machine that emulates changes its pace by the second, and programs settle for fast or
# slow by chance: short readings in turns, and the median of the rounds' ratios.
round() {
	local lat bw rt rate
	lat=$(perftest ib_send_lat -s 128 -n 5000 | awk '{ print 2 * $5 }') # of one way, the typical one a median
	rt=$(ours BareRoundTrip median-ns | awk '{ print $1 / 1000 }')
	bw=$(perftest ib_send_bw -s 128 -n 20000 | awk '{ print $5 * 1e6 }')
	rate=$(ours BareSendRate messages/s)
	printf '128 B, device alone, perftest: round trip %.1f µs, %.1f; messages/s %.0f, %.0f\n' "$rt" "$lat" "$rate" "$bw"
	echo "$rt $lat $rate $bw" >>"$out/rounds"
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

rm -f "$out/rounds"
rounds 3
bench rtt --workload rtt
bench produce --workload produce
rounds 1
bench direct --workload produce --direct
bench direct-latency --workload produce --direct --idle latency
rounds 3

echo
echo "medians, and what they are of the other's:"
for name in rtt produce direct direct-latency; do
	tr -d ' \n' <"$out/$name.json" | sed 's/{"workload"/\n&/g' | awk -v name="$name" -v lat="$(column 2)" '
		function get(key,   at, s) {
			if (!(at = index($0, "\"" key "\":"))) return ""
			s = substr($0, at + length(key) + 3)
			sub(/^{"p50":/, "", s)
			sub(/[,}].*/, "", s)
			gsub(/"/, "", s)
			return s
		}
		function beside(what, mine, other, who) {
			if (mine != "" && other != "" && other > 0) printf "%s, µs: %.1f; %s %.1f: × %.2f\n", what, mine, who, other, mine / other
		}
		{ kind = get("label") ~ /^(soft-roce|rnic)/ || get("transport") == "rdma" ? "rdma" : get("device") }
		name == "rtt" && get("layer") == "message" { of[kind] = get("rtMicros") }
		name != "rtt" { of[kind] = get("sendRtMicros") }
		END {
			what["rtt"] = "128 B round trip"
			what["produce"] = "produce, proxy to broker and back"
			what["direct"] = "produce, client to broker and back"
			what["direct-latency"] = "the same, loops that spin"
			if (name == "rtt") beside(what[name], of["rdma"], lat, "ib_send_lat")
			beside(what[name], of["rdma"], of["net"], "ordinary TCP")
			beside(what[name], of["rdma"], of["epoll"], "TCP on the same loop")
		}'
done
if [ -s "$out/rounds" ]; then
	printf '128 B round trip, device alone, µs: %.1f; ib_send_lat %.1f: × %.2f\n' "$(column 1)" "$(column 2)" "$(column 1 2)"
	printf '128 B messages/s, device alone: %.0f; ib_send_bw %.0f: × %.2f\n' "$(column 3)" "$(column 4)" "$(column 3 4)"
fi
