# shellcheck shell=sh
# What an initramfs does for abupdate: sourced by /init (any small initramfs) or by the initramfs-tools script beside it.
#
#   abupdate_value KEY            value of KEY= on the kernel command line (the last one), empty when absent
#   abupdate_on_trial             true where the kernel command line or the Raspberry Pi's firmware says that this boot is a trial
#   abupdate_arm_watchdog PROG    on trial only: arm the watchdog by PROG for abupdate.boot_timeout= seconds
#   abupdate_open_root PROG DEV   print what to mount: DEV itself, or with abupdate.verity= the device that PROG opens over it
#   abupdate_no_root              the root file system cannot be mounted: wait 10 s for a reader, then reboot
#
# Only the kernel command line and /proc, /sys, /dev mounted are needed; on a Raspberry Pi also /run, which the root file system gets.

ABUPDATE_ROOT_LOST_S=10
ABUPDATE_TRYBOOT=/proc/device-tree/chosen/bootloader/tryboot
ABUPDATE_RUN=/run/abupdate

abupdate_value() {
	_abu_value=
	# shellcheck disable=SC2013 # words are what is wanted
	for _abu_word in $(cat /proc/cmdline); do
		case $_abu_word in
		"$1="*) _abu_value=${_abu_word#*=} ;;
		esac
	done
	printf '%s\n' "$_abu_value"
}

abupdate_say() {
	echo "<4>abupdate: $*" >/dev/kmsg 2>/dev/null || echo "abupdate: $*"
}

# The Raspberry Pi's firmware adds no kernel arguments to a trial: it tells in the device tree that this boot is a try.
abupdate_on_trial() {
	[ "$(abupdate_value abupdate.trial)" != 1 ] || return 0
	# Four bytes, big-endian; the shell drops those that are zero.
	[ "$(cat "$ABUPDATE_TRYBOOT" 2>/dev/null)" = "$(printf '\001')" ] || return 1
	# What abupdate-trial.service looks for where there is no kernel argument.
	{ mkdir -p -m 700 "$ABUPDATE_RUN" && echo 1 >"$ABUPDATE_RUN/tryboot"; } 2>/dev/null ||
		abupdate_say "no $ABUPDATE_RUN/tryboot: the trial is watched, but not by abupdate-trial.service"
	return 0
}

# A trial boot without a watchdog goes on: the tries still end it when it panics or reboots, and the service says so.
abupdate_arm_watchdog() {
	abupdate_on_trial || return 0
	_abu_timeout=$(abupdate_value abupdate.boot_timeout)
	[ -n "$_abu_timeout" ] || _abu_timeout=120
	if [ -z "$(ls /sys/class/watchdog 2>/dev/null)" ]; then
		abupdate_say "no hardware watchdog, trying softdog"
		modprobe softdog 2>/dev/null || abupdate_say "no softdog either"
	fi
	if _abu_said=$("$1" "$_abu_timeout" 2>&1); then
		abupdate_say "trial of slot $(abupdate_value abupdate.slot): $_abu_said"
	else
		abupdate_say "trial without a watchdog: $_abu_said"
		return 1
	fi
}

# A device that cannot be opened is never mounted as it is: the caller goes on to abupdate_no_root.
abupdate_open_root() {
	_abu_verity=$(abupdate_value abupdate.verity)
	if [ -z "$_abu_verity" ]; then
		printf '%s\n' "$2"
	elif _abu_said=$("$1" "$2" abupdate-root "$_abu_verity" 2>&1); then
		printf '%s\n' "$_abu_said"
	else
		abupdate_say "dm-verity: $_abu_said"
		return 1
	fi
}

abupdate_no_root() {
	abupdate_say "cannot mount the root file system ($*), reboot in $ABUPDATE_ROOT_LOST_S s"
	sleep "$ABUPDATE_ROOT_LOST_S"
	reboot -f
}
