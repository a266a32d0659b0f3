#!/usr/bin/env bash
# Says how this machine stands to kernel Soft-RoCE: the module, the devices, and what
# would mend what is missing.
#
# Exit status: 0 a device is active; 1 none is, and up.sh could make one; 3 this kernel
# has no rdma_rxe.
set -uo pipefail
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ $# -eq 0 ] || die "usage: status.sh" 2

module=$(module_state)
echo "kernel=$(uname -r)"
echo "rdma_rxe=$module"
active=
while read -r d; do
	[ -n "$d" ] || continue
	echo
	describe "$d"
	grep -q ACTIVE "/sys/class/infiniband/$d/ports/1/state" && active=1
	dev=
	for v in /sys/class/infiniband_verbs/*; do
		[ "$(cat "$v/ibdev" 2>/dev/null)" = "$d" ] && dev=$(basename "$v")
	done
	if [ -z "$dev" ]; then
		echo "fix: modprobe ib_uverbs"
	elif [ ! -e "/dev/infiniband/$dev" ]; then
		echo "fix: /dev/infiniband/$dev is missing: start udev, or pass it to the container (--device=/dev/infiniband/$dev)"
	fi
done < <(rxe_devices)
if [ -n "$active" ]; then exit 0; fi
if [ "$module" = absent ]; then
	echo "fix: install the kernel's extra modules (Ubuntu: linux-modules-extra-$(uname -r)), or run in a guest: scripts/soft-roce/guest.sh"
	exit 3
fi
echo "fix: scripts/soft-roce/up.sh"
exit 1
