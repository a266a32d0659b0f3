#!/usr/bin/env bash
# What `make bench-softroce` runs where there is a kernel Soft-RoCE device (with-device.sh).
#
#   bench.sh MILLRACE [ARGUMENTS OF millrace bench]
#
# MILLRACE is the program, built with the tag verbs. perftest (ib_send_lat, ib_send_bw), where it
# is installed, measures the same device before and after: what C on bare verbs reaches.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"
millrace=$1
shift
device=${MILLRACE_RDMA_DEVICE:?run it through with-device.sh}
[ $# -gt 0 ] || set -- --transports tcp,rdma --topology local --workload rtt
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
	fi
}
rm -f "$out/perftest-rt"
bare
"$millrace" bench --json "$out/bench.json" "$@"
bare

# The medians beside each other.
tr -d ' \n' <"$out/bench.json" | sed 's/{"workload"/\n&/g' | awk -v out="$out/perftest-rt" '
	function get(key,   at, s) {
		if (!(at = index($0, "\"" key "\":"))) return ""
		s = substr($0, at + length(key) + 3)
		sub(/[,}].*/, "", s)
		gsub(/"/, "", s)
		return s
	}
	/"workload":"rtt"/ && /"layer":"message"/ {
		if (get("device") == "net") net = get("p50")
		if (get("label") ~ /^(soft-roce|rnic)/) rdma = get("p50")
	}
	END {
		while ((getline line < out) > 0) { sum += line; n++ }
		if (rdma != "" && net != "") printf "128 B round trip, median: %.1f µs; ordinary TCP %.1f µs: × %.2f", rdma, net, rdma / net
		if (rdma != "" && n > 0) printf "; ib_send_lat %.1f µs: × %.2f", sum / n, rdma / (sum / n)
		if (rdma != "") print ""
	}'
