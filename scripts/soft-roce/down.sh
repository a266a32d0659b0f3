#!/usr/bin/env bash
# Removes what up.sh made: the device, its veth and its network namespace. Root.
#
#   down.sh [--name rxe0]
#
# A device that up.sh did not make stays. Nothing there: nothing to do.
set -uo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=rxe0
case ${1-} in
--name) name=${2-} ;;
'') ;;
*) die "usage: down.sh [--name rxe0]" 2 ;;
esac
valid_name "$name" || die "device name '$name'" 2
need_root
state=$state_dir/$name
[ -r "$state" ] || exit 0
need_tools
of() { sed -n "s/^$1=//p" "$state"; }

failed=
if [ -n "$(of made_device)" ] && [ -d "/sys/class/infiniband/$name" ]; then
	rdma link delete "$name" || failed=1
fi
netdev=$(of made_netdev)
if [ -n "$netdev" ]; then
	if [ -e "/sys/class/net/$netdev" ]; then ip link delete "$netdev" || failed=1; fi
	ns=$(of peer_netns)
	if [ -e "/run/netns/$ns" ]; then ip netns delete "$ns" || failed=1; fi
fi
[ -z "$failed" ] || die "some of it could not be removed; $state says what it is"
rm -f "$state"
