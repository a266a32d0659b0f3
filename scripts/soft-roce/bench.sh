#!/usr/bin/env bash
# What `make bench-softroce` runs where there is a kernel Soft-RoCE device (with-device.sh).
#
#   bench.sh DIR [ARGUMENTS OF millrace bench]
#
# DIR holds millrace and verbs.bench, the test binary of rdma/verbs, both built with the tag
# verbs. Without arguments: round trips, and produce at a fixed rate. perftest (ib_send_lat,
# ib_send_bw), where it is installed, measures the same device before, between and after:
# what C on bare verbs reaches. The last lines set the medians beside each other.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"
dir=$(cd "$1" && pwd)
millrace=$dir/millrace
shift
device=${MILLRACE_RDMA_DEVICE:?run it through with-device.sh}
# A rate that no transport is near its limit at, in an emulated guest.
[ $# -gt 0 ] || set -- --transports tcp,rdma --topology local --workload rtt,produce --rate 100
out=${OUT:-$(mktemp -d)}
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
	[ -n "$result" ] && echo "$result"
}
bare() {
	local row
	command -v ib_send_lat >/dev/null || {
		echo "perftest is not installed: no comparison with C on bare verbs"
		return
	}
	# Its latency is one way, the typical one a median.
	if row=$(perftest ib_send_lat -s 128 -n 5000); then
		awk '{ printf "ib_send_lat, 128 B: median round trip %.1f µs\n", 2 * $5 }' <<<"$row"
		awk '{ print 2 * $5 }' <<<"$row" >>"$out/perftest-rt"
	fi
	if row=$(perftest ib_send_bw -s 128 -n 20000); then
		awk '{ printf "ib_send_bw, 128 B: %.0f messages/s\n", $5 * 1e6 }' <<<"$row"
		awk '{ print $5 * 1e6 }' <<<"$row" >>"$out/perftest-rate"
	fi
}
# Our device alone, without loop and message protocol, as perftest does it.
device() {
	"$dir/verbs.bench" -test.run '^$' -test.bench Bare -test.benchtime 1s | tee "$out/device.txt" | awk '
		function value(unit,   i) { for (i = 3; i < NF; i++) if ($(i + 1) == unit) return $i }
		/^BenchmarkBareRoundTrip/ { printf "device alone, 128 B: median round trip %.1f µs\n", value("median-ns") / 1000 }
		/^BenchmarkBareSendRate/ { printf "device alone, 128 B: %.0f messages/s, in lists\n", value("messages/s") }'
	awk '/^BenchmarkBareSendRate/ { for (i = 3; i < NF; i++) if ($(i + 1) == "messages/s") print $i }' "$out/device.txt" >>"$out/device-rate"
}
rm -f "$out"/perftest-r* "$out/device-rate"
bare
device
bare
"$millrace" bench --json "$out/bench.json" "$@"
bare
device

median() { sort -n "$1" 2>/dev/null | awk '{ v[NR] = $1 } END { if (NR) print v[int((NR + 1) / 2)] }'; }
tr -d ' \n' <"$out/bench.json" | sed 's/{"workload"/\n&/g' | awk -v lat="$(median "$out/perftest-rt")" \
	-v bw="$(median "$out/perftest-rate")" -v rate="$(median "$out/device-rate")" '
	function get(key,   at, s) {
		if (!(at = index($0, "\"" key "\":"))) return ""
		s = substr($0, at + length(key) + 3)
		sub(/^{"p50":/, "", s)
		sub(/[,}].*/, "", s)
		gsub(/"/, "", s)
		return s
	}
	{ kind = get("label") ~ /^(soft-roce|rnic)/ ? "rdma" : get("device") }
	/"workload":"rtt"/ && /"layer":"message"/ { rtt[kind] = get("rtMicros") }
	/"workload":"produce"/ { send[kind] = get("sendRtMicros") }
	function beside(what, mine, other, name) {
		if (mine != "" && other != "" && other > 0) printf "%s: %.1f; %s %.1f: × %.2f\n", what, mine, name, other, mine / other
	}
	END {
		beside("128 B round trip, median µs", rtt["rdma"], lat, "ib_send_lat")
		beside("128 B round trip, median µs", rtt["rdma"], rtt["net"], "ordinary TCP")
		beside("128 B messages/s", rate, bw, "ib_send_bw")
		beside("produce, proxy to broker and back, median µs", send["rdma"], send["epoll"], "TCP on the same loop")
		beside("produce, proxy to broker and back, median µs", send["rdma"], send["net"], "ordinary TCP")
	}'
