# Sourced by up.sh, down.sh, status.sh and with-device.sh.

# What up.sh made is written down here, for down.sh to remove.
state_dir=/run/millrace-soft-roce

die() { # message, exit status (1)
	echo "$(basename "$0"): $1" >&2
	exit "${2:-1}"
}

need_root() { [ "$(id -u)" -eq 0 ] || die "must run as root"; }

need_tools() {
	command -v ip >/dev/null && command -v rdma >/dev/null ||
		die "ip and rdma are missing; fix: apt-get install --no-install-recommends iproute2"
}

valid_name() { [[ $1 =~ ^[a-zA-Z][a-zA-Z0-9_-]{0,9}$ ]]; }

# module_state says how this kernel stands to rdma_rxe: loaded, available or absent.
module_state() {
	local base=/lib/modules/$(uname -r)
	if [ -d /sys/module/rdma_rxe ]; then
		echo loaded
	elif grep -qs '/rdma_rxe\.ko' "$base/modules.dep" "$base/modules.builtin"; then
		echo available
	else
		echo absent
	fi
}

# rxe_devices lists the devices of rdma_rxe, one name a line.
rxe_devices() {
	local d
	for d in /sys/class/infiniband/*; do
		# rdma_rxe alone has a "parent": the network device it sits on.
		[ -r "$d/parent" ] && basename "$d"
	done
	return 0
}

# describe prints what a device is, as lines KEY=VALUE.
describe() {
	local d=/sys/class/infiniband/$1 i type g mtu index= address= address6=
	echo "device=$1"
	echo "netdev=$(cat "$d/parent")"
	echo "state=$(sed 's/.*: //' "$d/ports/1/state")"
	# The table has 1024 places, used from the first on.
	for ((i = 0; i < 16; i++)); do
		{ read -r type <"$d/ports/1/gid_attrs/types/$i"; } 2>/dev/null || continue
		[ "$type" = "RoCE v2" ] || continue
		read -r g <"$d/ports/1/gids/$i"
		case $g in
		0000:0000:0000:0000:0000:ffff:*)
			g=${g#0000:0000:0000:0000:0000:ffff:}
			[ -n "$address" ] || index=$i address=$((16#${g:0:2})).$((16#${g:2:2})).$((16#${g:5:2})).$((16#${g:7:2}))
			;;
		fe80:*) ;;
		*) [ -n "$address6" ] || address6=$g ;;
		esac
	done
	[ -z "$address" ] || printf '%s\n' "address=$address" "gid_index=$index"
	[ -z "$address6" ] || echo "address6=$address6"
	mtu=$(cat "/sys/class/net/$(cat "$d/parent")/mtu" 2>/dev/null)
	[ -z "$mtu" ] || echo "mtu=$mtu"
	if [ -r "$state_dir/$1" ]; then
		sed -n 's/^\(peer_[a-z0-9]*=.*\)/\1/p' "$state_dir/$1"
	fi
}
