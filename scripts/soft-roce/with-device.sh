#!/usr/bin/env bash
# Runs a command where there is a kernel Soft-RoCE device: here if this kernel has
# rdma_rxe and we are root, else in a guest.
#
#   with-device.sh [OPTIONS OF guest.sh] [--] CMD [ARG…]
#   with-device.sh --prepare
#
# The command finds the device in MILLRACE_RDMA_DEVICE, and the other end of its veth in
# MILLRACE_RDMA_PEER_NETNS, …_PEER_ADDRESS and …_PEER_ADDRESS6. Its exit status is that
# of CMD.
# The device is gone afterwards. --prepare runs nothing: it tells with its exit status,
# and the reason, whether a command could be run, having downloaded what that takes.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$here/common.sh"

if [ "${1-}" = --here ]; then
	shift
	name=rxe$((RANDOM % 1000 + 1000)) # beside one that is there already
	trap '"$here/down.sh" --name "$name"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	text=$("$here/up.sh" --name "$name") || exit
	of() { sed -n "s/^$1=//p" <<<"$text"; }
	export MILLRACE_RDMA_DEVICE=$name
	MILLRACE_RDMA_PEER_NETNS=$(of peer_netns)
	MILLRACE_RDMA_PEER_ADDRESS=$(of peer_address)
	MILLRACE_RDMA_PEER_ADDRESS6=$(of peer_address6)
	export MILLRACE_RDMA_PEER_NETNS MILLRACE_RDMA_PEER_ADDRESS MILLRACE_RDMA_PEER_ADDRESS6
	"$@" &
	child=$!
	trap 'kill $child 2>/dev/null; wait $child; exit 143' INT TERM HUP
	wait $child
	exit $?
fi

here_possible() { [ "$(module_state)" != absent ] && [ "$(id -u)" -eq 0 ] && command -v rdma >/dev/null; }

if [ "${1-}" = --prepare ]; then
	here_possible && exit 0
	exec "$here/guest.sh" --prepare
fi

options=() command=()
while [ $# -gt 0 ]; do
	case $1 in
	--) shift; break ;;
	--out | --timeout | --memory | --cpus | --env | --accel) options+=("$1" "${2-}"); shift ;;
	-*) die "unknown option $1" 2 ;;
	*) break ;;
	esac
	shift || die "the last option needs a value" 2
done
command=("$@")
[ ${#command[@]} -gt 0 ] || die "usage: with-device.sh [OPTIONS OF guest.sh] [--] CMD [ARG…]" 2

if here_possible; then
	limit=600 out=
	for ((i = 0; i < ${#options[@]}; i += 2)); do
		case ${options[i]} in
		--timeout) limit=${options[i + 1]} ;;
		--out) out=${options[i + 1]} ;;
		esac
	done
	if [ -n "$out" ]; then mkdir -p "$out" && export OUT=$(cd "$out" && pwd) || exit; fi
	exec timeout --kill-after 10 "$limit" "$here/with-device.sh" --here "${command[@]}"
fi
exec "$here/guest.sh" "${options[@]}" -- "$here/with-device.sh" --here "${command[@]}"
