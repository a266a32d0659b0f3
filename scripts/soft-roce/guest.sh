#!/usr/bin/env bash
# Runs a command in a QEMU guest with Debian's kernel, which has rdma_rxe, veth,
# netem and the like where this machine's kernel has not.
#
#   guest.sh [--out DIR] [--timeout SECONDS] [--memory MIB] [--cpus N]
#            [--env NAME]… [--accel auto|kvm|tcg] [--] CMD [ARG…]
#   guest.sh --prepare
#
# The guest sees this machine's whole file system, and so this checkout, at the same
# paths and read-only; what it writes goes to memory and is gone afterwards. CMD runs as
# root in the present folder, with PATH, HOME, LANG, MILLRACE_* and the variables named
# with --env. It has no standard input and no network but what it makes.
# --out DIR: files written below $OUT lie in DIR afterwards.
#
# Standard output, standard error and the exit status of CMD come back. Besides:
# 124 after --timeout (default 600), 125 if the guest could not run, 2 for usage.
# --prepare only downloads and unpacks, into .cache/guest of the checkout (or
# $MILLRACE_GUEST_CACHE): a kernel and a busybox from $DEBIAN_MIRROR
# (http://deb.debian.org/debian). Nothing is installed. docs: README.md beside this file.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${MILLRACE_GUEST_CACHE:-$(cd "$here/../.." && pwd)/.cache/guest}

die() {
	echo "guest.sh: $1" >&2
	exit "${2:-125}"
}
usage() { die "$1; usage: guest.sh [--out DIR] [--timeout SECONDS] [--memory MIB] [--cpus N] [--env NAME] [--accel auto|kvm|tcg] [--] CMD [ARG…]" 2; }

out= limit=600 memory=1024 cpus=2 want=auto prepare= names=(PATH HOME LANG)
while [ $# -gt 0 ]; do
	case $1 in
	--out) out=${2-}; shift ;;
	--timeout) limit=${2-}; shift ;;
	--memory) memory=${2-}; shift ;;
	--cpus) cpus=${2-}; shift ;;
	--env) names+=("${2-}"); shift ;;
	--accel) want=${2-}; shift ;;
	--prepare) prepare=1 ;;
	--) shift; break ;;
	-*) usage "unknown option $1" ;;
	*) break ;;
	esac
	shift || usage "the last option needs a value"
done
[ -n "$prepare" ] || [ $# -gt 0 ] || usage "no command"
for n in "$limit" "$memory" "$cpus"; do
	[[ $n =~ ^[1-9][0-9]*$ ]] || usage "'$n' is not a positive number"
done
case $want in auto | kvm | tcg) ;; *) usage "no accelerator '$want'" ;; esac

command -v qemu-system-x86_64 >/dev/null ||
	die "qemu-system-x86_64 is missing; fix: apt-get install --no-install-recommends qemu-system-x86"
# shellcheck source=guest-kernel.sh
. "$here/guest-kernel.sh"
prepare_kernel "$cache" "$here/guest-init" || exit 125
[ -z "$prepare" ] || exit 0

# A run that was killed with SIGKILL could not remove its folder: the next one does.
mkdir -p "$cache/runs" || die "cannot write to $cache"
for run in "$cache"/runs/*; do
	pid=${run##*/}
	[ -e "/proc/${pid%%.*}" ] || rm -rf "$run"
done
run=$(mktemp -d "$cache/runs/$$.XXXXXX") || die "cannot write to $cache"
qemu= followers=() sleeper=
halt() { # ends the processes of this run
	local p
	for p in $qemu $sleeper "${followers[@]}"; do kill -KILL "$p" 2>/dev/null; done
	for p in $qemu $sleeper "${followers[@]}"; do wait "$p" 2>/dev/null; done
	qemu= sleeper= followers=()
}
trap 'halt; rm -rf "$run"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$run/job"
{
	printf 'modules=%q\n' "$cache/kernel/lib/modules"
	printf 'out=%q\n' "${out:+1}"
} >"$run/job/config"
{
	mapfile -t -O "${#names[@]}" names < <(compgen -v MILLRACE_)
	for n in "${names[@]}"; do
		[[ $n =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || usage "'$n' is not the name of a variable"
		[ -z "${!n+x}" ] || printf 'export %s=%q\n' "$n" "${!n}"
	done
	[ -z "$out" ] || echo 'export OUT=/run/guest/out'
	printf 'cd %q || exit 125\nexec' "$PWD"
	printf ' %q' "$@"
	echo
} >"$run/job/command" || exit
: >"$run/job/stdout"
: >"$run/job/stderr"

shares=(
	-virtfs "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
	-virtfs "local,path=$run/job,mount_tag=job,security_model=none"
)
if [ -n "$out" ]; then
	case $PWD$out in *,*) die "a comma in the path of $out cannot be told to qemu" 2 ;; esac
	mkdir -p "$out" || die "cannot make $out"
	out=$(cd "$out" && pwd)
	shares+=(-virtfs "local,path=$out,mount_tag=out,security_model=none")
fi
# Nothing shall outlive this shell, however it ends.
bound=()
if command -v setpriv >/dev/null; then bound=(setpriv --pdeathsig KILL --); fi

start() { # with accelerator $1
	local accel=$1 cpu=max clock=
	if [ "$accel" = tcg ]; then
		accel=tcg,thread=multi,tb-size=128
		# The emulated counter is the host's, the same on all processors. The kernel does not
		# believe that, and would read the time from a device, which stalls qemu as a whole.
		clock=" tsc=reliable clocksource=tsc"
	fi
	[ "$accel" = kvm ] && cpu=host
	"${bound[@]}" qemu-system-x86_64 -accel "$accel" -cpu "$cpu" -smp "$cpus" -m "$memory" \
		-nodefaults -no-user-config -no-reboot -display none -nic none -serial "file:$run/console" \
		-kernel "$cache/kernel/vmlinuz" -initrd "$cache/kernel/initramfs" \
		-append "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off nokaslr net.ifnames=0$clock" \
		"${shares[@]}" </dev/null >"$run/qemu.log" 2>&1 &
	qemu=$!
}
# await waits until qemu ends; 1 if it has not after $1 seconds.
await() {
	"${bound[@]}" sleep "$1" &
	sleeper=$!
	wait -n "$qemu" "$sleeper"
	if kill -0 "$sleeper" 2>/dev/null; then
		kill "$sleeper"
		wait "$sleeper" 2>/dev/null
		sleeper=
		return 0
	fi
	sleeper=
	return 1
}

# /dev/kvm may be there and still boot no ordinary kernel. What was found out holds
# until this machine boots again.
boot=$(cat /proc/sys/kernel/random/boot_id)
known="$cache/accelerator"
if [ "$want" = auto ] && [ -r "$known" ] && [ "$(cut -d' ' -f1 "$known")" = "$boot" ]; then want=$(cut -d' ' -f2 "$known"); fi
if [ "$want" = auto ] && ! { [ -r /dev/kvm ] && [ -w /dev/kvm ]; }; then want=tcg; fi
began=$SECONDS
if [ "$want" = auto ]; then
	exec {stderr}>&2 2>/dev/null # the shell tells how a job died
	start kvm
	for ((i = 0; i < 75; i++)); do
		if [ -e "$run/job/booted" ] || ! kill -0 "$qemu" 2>/dev/null; then break; fi
		sleep 0.2 &
		wait $!
	done
	if [ -e "$run/job/booted" ]; then
		want=kvm
	else
		halt
		want=tcg
	fi
	exec 2>&"$stderr" {stderr}>&-
	echo "$boot $want" >"$known.$$" && mv "$known.$$" "$known"
fi
[ -n "$qemu" ] || start "$want"
"${bound[@]}" tail -n +1 -s 0.1 -f --pid="$qemu" "$run/job/stdout" &
followers+=($!)
"${bound[@]}" tail -n +1 -s 0.1 -f --pid="$qemu" "$run/job/stderr" >&2 &
followers+=($!)

ended=1
left=$((limit - (SECONDS - began)))
[ "$left" -gt 0 ] && await "$left" || ended=
if [ -z "$ended" ]; then kill -KILL "$qemu" 2>/dev/null; fi
wait "$qemu" 2>/dev/null
qemu=
wait "${followers[@]}"
followers=()
if [ -s "$run/job/status" ]; then exit "$(cat "$run/job/status")"; fi
if [ -z "$ended" ]; then die "the command did not end within $limit s; fix: --timeout SECONDS" 124; fi
{
	echo "guest.sh: the guest ended without a result ($want); its console and qemu said:"
	tail -n 25 "$run/console" "$run/qemu.log" 2>/dev/null
} >&2
exit 125
