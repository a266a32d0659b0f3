#!/usr/bin/env bash
# Makes a kernel Soft-RoCE device (rdma_rxe). Root.
#
#   up.sh [--name rxe0] [--netdev NETDEV]
#
# On NETDEV if one is named; that must have an address, which peers will use. Else on a
# veth that it makes: roceN, with the other end in a network namespace of its own, for
# a peer that is not this device itself. Prints lines KEY=VALUE: device, netdev, state,
# address, address6, mtu, and for a veth peer_netns, peer_netdev, peer_address,
# peer_address6. If the device is there already, it only prints. down.sh undoes it.
#
# Exit status: 0 there is a device and its port is active; 1 it could not be made; 2 usage;
# 3 this kernel has no rdma_rxe (run in a guest: guest.sh).
set -uo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name=rxe0 netdev=
while [ $# -gt 0 ]; do
	case $1 in
	--name) name=${2-} ;;
	--netdev) netdev=${2-} ;;
	*) die "usage: up.sh [--name rxe0] [--netdev NETDEV]" 2 ;;
	esac
	[ $# -ge 2 ] || die "$1 needs a value" 2
	shift 2
done
valid_name "$name" || die "device name '$name': a letter, then up to 9 letters, digits, - or _" 2
need_root
need_tools
[ -z "$netdev" ] || [ -d "/sys/class/net/$netdev" ] || die "there is no network device '$netdev'; fix: one of $(ls /sys/class/net | tr '\n' ' ')"

if [ -d "/sys/class/infiniband/$name" ]; then
	have=$(cat "/sys/class/infiniband/$name/parent" 2>/dev/null) || die "$name exists and is no Soft-RoCE device; fix: --name another"
	[ -z "$netdev" ] || [ "$have" = "$netdev" ] || die "$name exists, on $have; fix: --name another, or down.sh --name $name"
	describe "$name"
	exit 0
fi

if [ "$(module_state)" != loaded ]; then
	if command -v modprobe >/dev/null; then modprobe rdma_rxe 2>/dev/null; fi
	# Where there is no modprobe the kernel may find one by itself, when asked for a device.
fi

state=$state_dir/$name
mkdir -p "$state_dir"
: >"$state.new"
undo() {
	mv "$state.new" "$state" 2>/dev/null
	"$(dirname "${BASH_SOURCE[0]}")/down.sh" --name "$name" >/dev/null
}
fail() {
	undo
	die "$1" "${2:-1}"
}

made=$netdev
if [ -z "$netdev" ]; then
	for ((i = 0; i < 64; i++)); do
		[ -e "/sys/class/net/roce$i" ] || [ -e "/run/netns/roce-peer$i" ] || break
	done
	netdev=roce$i ns=roce-peer$i
	# 198.18.0.0/15 is for tests between networks (RFC 2544), fd00::/8 is local (RFC 4193).
	printf '%s\n' "made_netdev=$netdev" "peer_netns=$ns" "peer_netdev=peer" \
		"peer_address=198.18.$i.2" "peer_address6=fd5e:4791:$i::2" >>"$state.new"
	# 4200 bytes carry the largest path MTU, 4096, with its headers.
	ip netns add "$ns" &&
		ip link add "$netdev" mtu 4200 type veth peer name peer mtu 4200 netns "$ns" &&
		ip addr add "198.18.$i.1/24" dev "$netdev" &&
		ip -n "$ns" addr add "198.18.$i.2/24" dev peer &&
		ip link set "$netdev" up &&
		ip -n "$ns" link set lo up &&
		ip -n "$ns" link set peer up || fail "the veth could not be made"
	# A machine may have IPv6 switched off.
	if [ "$(cat "/proc/sys/net/ipv6/conf/$netdev/disable_ipv6" 2>/dev/null)" = 0 ]; then
		ip addr add "fd5e:4791:$i::1/64" dev "$netdev" nodad &&
			ip -n "$ns" addr add "fd5e:4791:$i::2/64" dev peer nodad || fail "the veth's IPv6 addresses could not be set"
	fi
fi

if ! why=$(rdma link add "$name" type rxe netdev "$netdev" 2>&1); then
	if [ "$(module_state)" = absent ]; then
		fail "kernel $(uname -r) has no rdma_rxe; fix: install its extra modules (Ubuntu: linux-modules-extra-$(uname -r)), or run in a guest: scripts/soft-roce/guest.sh" 3
	fi
	fail "rdma link add: $why"
fi
echo "made_device=$name" >>"$state.new"
mv "$state.new" "$state"
[ -d /sys/module/ib_uverbs ] || { command -v modprobe >/dev/null && modprobe ib_uverbs; }

# The port turns active, and its GID table fills, a moment later.
for ((i = 0; i < 50; i++)); do
	text=$(describe "$name" 2>/dev/null)
	if [[ $text == *state=ACTIVE*address* ]]; then
		echo "$text"
		exit 0
	fi
	sleep 0.1
done
describe "$name" >&2
[ -n "$made" ] || undo
die "the port of $name is not active or has no address; fix: ip link set $netdev up; ip addr add ADDRESS/LENGTH dev $netdev"
