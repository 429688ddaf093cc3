# abupdate: which slot boots, by the variables of Mender's U-Boot integration, for a U-Boot that keeps its own environment where
# Linux reaches it (fw_printenv) and is built with CONFIG_BOOTCOUNT_LIMIT and CONFIG_BOOTCOUNT_ENV.
# Compile: mkimage -A arm64 -T script -C none -d mender.cmd boot.scr
#
# Reads   mender_boot_part (decimal)  upgrade_available (1: on trial)  bootcount, bootlimit (decimal; U-Boot counts)  BOOT_TIMEOUT (78)
#         BOOT_ORDER (no other slot), BOOT_A_LEFT, BOOT_B_LEFT (1): which slot is good behind the one that boots
# Writes  once what is missing: mender_boot_part, mender_boot_part_hex, bootlimit, altbootcmd; mender_saveenv_canary where it is asked
#         for. Beyond bootlimit U-Boot runs altbootcmd, which has this script go back: the other part, upgrade_available 0
# Kernel  abupdate.slot=A panic=10; on trial abupdate.trial=1 abupdate.boot_timeout=S watchdog.open_timeout=S, S decimal seconds;
#         abupdate.failed=B: slots that could not be started in this boot
#
# The running environment is the store, so whatever must not be saved is a shell variable until the last saveenv is done. (An
# environment variable hides a shell variable of its name, and "x=" does not empty one: "none" stands for nothing.)
#
# abu_arm, a variable of the environment that the board may have: arms the watchdog just before a kernel on trial starts, succeeds
# when it runs; finds abu_timeout (hexadecimal seconds, 1 to 7fe) and abu_seconds (decimal). For example, once, at the prompt:
# setenv abu_arm 'wdt dev NAME && wdt start ${abu_seconds}000' ; saveenv

# ---- board: adapt this block --------------------------------------------------------------------------------------------
abu_if=mmc                           # block interface and device, as in "load mmc 0:3"
abu_num=0
abu_part_A=3                         # partition with kernel and initrd of each slot; hex: the same number as U-Boot counts
abu_hex_A=3
abu_part_B=4
abu_hex_B=4
abu_root_A=PARTLABEL=rootfs_a
abu_root_B=PARTLABEL=rootfs_b
abu_kernel=/vmlinuz
abu_initrd=/initrd.img
abu_args="console=ttyAMA0"           # what every kernel gets besides
abu_at_kernel=${kernel_addr_r}
abu_magic_at=0x40400038              # kernel_addr_r + 0x38: an arm64 kernel says ARM and 64 there
abu_at_initrd=${ramdisk_addr_r}
abu_at_fdt=${fdtcontroladdr}
# -------------------------------------------------------------------------------------------------------------------------

# ---- what a board needs to begin with
abu_save=no
if test "${mender_boot_part:-none}" = none; then
	setenv mender_boot_part ${abu_part_A} ; setenv mender_boot_part_hex ${abu_hex_A}
	abu_save=yes
fi
if test "${bootlimit:-none}" = none; then setenv bootlimit 3 ; abu_save=yes; fi
if test "${altbootcmd:-none}" = none; then setenv altbootcmd 'setenv abu_back yes; run bootcmd' ; abu_save=yes; fi
if test "${mender_check_saveenv_canary:-0}" = 1 -a "${mender_saveenv_canary:-0}" != 1; then setenv mender_saveenv_canary 1 ; abu_save=yes; fi

# ---- back: ordered by altbootcmd, or since this U-Boot does not count, so that nothing would ever end the trial
abu_kind=confirmed
if test "${upgrade_available:-0}" = 1; then abu_kind=trial; fi
abu_go_back="${abu_back:-no}"
setenv abu_back
if test ${abu_kind} = trial -a "${bootcount:-0}" = 0; then
	echo "abupdate: this U-Boot does not count boots, no trial"
	abu_go_back=yes
fi
if test ${abu_go_back} = yes -a ${abu_kind} = trial; then
	echo "abupdate: the trial of part ${mender_boot_part} is over"
	if test "${mender_boot_part}" = ${abu_part_A}; then
		setenv mender_boot_part ${abu_part_B} ; setenv mender_boot_part_hex ${abu_hex_B}
	else
		setenv mender_boot_part ${abu_part_A} ; setenv mender_boot_part_hex ${abu_hex_A}
	fi
	setenv upgrade_available 0 ; setenv bootcount 0
	abu_kind=confirmed
	# Both copies: the older one must not bring the trial back.
	saveenv
	abu_save=yes
fi
if test ${abu_save} = yes; then saveenv; fi
if test "${mender_boot_part}" = ${abu_part_B}; then abu_first=B; else abu_first=A; fi

# ---- behind the slot that boots, the other one only where abupdate has noted it as good: it may hold half an update. The note holds
# only where its first is the slot that boots.
abu_slots=none
for abu_s in ${BOOT_ORDER}; do
	if test "${abu_slots}" = ${abu_first} -a "${abu_s}" = A -a "${BOOT_A_LEFT:-1}" != 0; then abu_slots="B A"; fi
	if test "${abu_slots}" = ${abu_first} -a "${abu_s}" = B -a "${BOOT_B_LEFT:-1}" != 0; then abu_slots="A B"; fi
	if test "${abu_slots}" = none; then
		if test "${abu_s}" = ${abu_first}; then abu_slots=${abu_first}; else abu_slots=over; fi
	fi
done
if test "${abu_slots}" = none -o "${abu_slots}" = over; then abu_slots=${abu_first}; fi

# ---- where a confirmed slot does not load, the other one in the same boot, and nothing is written: abupdate settles it
# Decimal seconds for the kernel, digit by digit since setexpr knows hexadecimal only.
abu_timeout="${BOOT_TIMEOUT:-78}"
if itest "${abu_timeout}" -gt 7fe; then abu_timeout=7fe; fi
setexpr abu_s4 ${abu_timeout} / 3e8
setexpr abu_x ${abu_timeout} % 3e8 ; setexpr abu_s3 ${abu_x} / 64
setexpr abu_x ${abu_timeout} % 64 ; setexpr abu_s2 ${abu_x} / a
setexpr abu_s1 ${abu_timeout} % a
abu_seconds=${abu_s4}${abu_s3}${abu_s2}${abu_s1}
if itest "${abu_timeout}" -lt 3e8; then abu_seconds=${abu_s3}${abu_s2}${abu_s1}; fi
if itest "${abu_timeout}" -lt 64; then abu_seconds=${abu_s2}${abu_s1}; fi
if itest "${abu_timeout}" -lt a; then abu_seconds=${abu_s1}; fi
abu_failed=none
for abu_slot in ${abu_slots}; do
	if test ${abu_slot} = A; then
		abu_hex=${abu_hex_A} ; abu_root=${abu_root_A}
	else
		abu_hex=${abu_hex_B} ; abu_root=${abu_root_B}
	fi
	echo "abupdate: slot ${abu_slot} ${abu_kind} count ${bootcount} of ${bootlimit}"
	setenv bootargs "${abu_args} root=${abu_root} ro abupdate.slot=${abu_slot} panic=10"
	if test ${abu_failed} != none; then setenv bootargs "${bootargs} abupdate.failed=${abu_failed}"; fi
	if test ${abu_kind} = trial; then
		setenv bootargs "${bootargs} abupdate.trial=1 abupdate.boot_timeout=${abu_seconds} watchdog.open_timeout=${abu_seconds}"
	fi
	if load ${abu_if} ${abu_num}:${abu_hex} ${abu_at_kernel} ${abu_kernel}; then
		if load ${abu_if} ${abu_num}:${abu_hex} ${abu_at_initrd} ${abu_initrd}; then
			abu_armed=no
			# A running watchdog cannot be stopped, so it is armed only for what looks like a kernel.
			if test ${abu_kind} = trial && itest "${abu_timeout}" -gt 0 && itest.l *${abu_magic_at} == 0x644d5241; then
				if run abu_arm; then abu_armed=yes ; echo "abupdate: watchdog armed, ${abu_seconds} s"; fi
			fi
			booti ${abu_at_kernel} ${abu_at_initrd}:${filesize} ${abu_at_fdt}
			if test ${abu_armed} = yes; then reset; fi
		fi
	fi
	echo "abupdate: slot ${abu_slot} could not be started"
	# A trial that does not load costs one of its boots.
	if test ${abu_kind} = trial; then reset; fi
	abu_failed=${abu_slot}
done
echo "abupdate: no slot can be started, reset"
reset
