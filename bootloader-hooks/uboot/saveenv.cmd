# abupdate: which slot boots, for a U-Boot that keeps its own environment, redundant, where Linux reaches it (fw_printenv).
# Compile: mkimage -A arm64 -T script -C none -d saveenv.cmd boot.scr
#
# The same decisions, variables and kernel arguments as boot.cmd, which is for a U-Boot that cannot save; here the running
# environment is the store: setenv and saveenv. So nothing of this script may stay in it when it is saved: what setexpr and
# setenv make is deleted before; everything else is a shell variable. (A trap of this shell: an environment variable hides a
# shell variable of its name, and "x=" does not empty a shell variable: "none" stands for nothing.)
#
# abu_arm, a variable of the environment that the board may have: arms the watchdog just before a kernel on trial starts, succeeds
# when it runs; finds abu_timeout (hexadecimal seconds, 1 to 7fe) and abu_seconds (decimal). For example, once, at the prompt:
# setenv abu_arm 'wdt dev NAME && wdt start ${abu_seconds}000' ; saveenv

# ---- board: adapt this block --------------------------------------------------------------------------------------------
abu_if=mmc                           # block interface and device of the slots, as in "load mmc 0:3"
abu_num=0                            # (put what it needs before that, as "usb start" or "virtio scan", in front)
abu_env_if=mmc                       # the environment's, and first sectors of its two copies (as U-Boot was built), to see whether
abu_env_num=0                        # a counter is on the medium; abu_copy0=none: not on a block device, saveenv is believed
abu_copy0=0x4800
abu_copy1=0x4c00
abu_blocks=0x20                      # sectors, bytes of one copy; bytes without checksum and flag
abu_size=0x4000
abu_length=0x3ffb
abu_part_A=3                         # partitions with kernel and initrd
abu_part_B=4
abu_root_A=PARTLABEL=rootfs_a
abu_root_B=PARTLABEL=rootfs_b
abu_kernel=/vmlinuz
abu_initrd=/initrd.img
abu_args="console=ttyAMA0"           # what every kernel gets besides
abu_was0=0x40240000                  # scratch memory for five copies, away from this script, kernel and initrd; _data: behind
abu_was1=0x40280000                  # checksum and flag
abu_now=0x402c0000
abu_now_data=0x402c0005
abu_out=0x40300000
abu_out_data=0x40300005
abu_keep=0x40340000
abu_at_kernel=${kernel_addr_r}
abu_magic_at=0x40400038              # kernel_addr_r + 0x38: an arm64 kernel says ARM and 64 there
abu_at_initrd=${ramdisk_addr_r}
abu_at_fdt=${fdtcontroladdr}
# -------------------------------------------------------------------------------------------------------------------------

abu_order="${BOOT_ORDER:-A B}"
abu_trial=none
for abu_s in ${BOOT_TRIAL}; do abu_trial=${abu_s}; done
abu_budget="${BOOT_BUDGET:-a}"
abu_timeout="${BOOT_TIMEOUT:-78}"
abu_left_A="${BOOT_A_LEFT:-none}"
abu_left_B="${BOOT_B_LEFT:-none}"
abu_verity_A="${BOOT_A_VERITY:-none}"
abu_verity_B="${BOOT_B_VERITY:-none}"
echo "abupdate: order ${abu_order}, left A ${abu_left_A} B ${abu_left_B}, trial ${abu_trial}, budget ${abu_budget}, timeout ${abu_timeout}"

# The board may have bootargs of its own, which are to stay. No shell variable takes them: a quotation mark in them would end it.
env export -b -s ${abu_size} ${abu_keep} bootargs

# abu_mode: count; free: nothing is counted or written; last: the last resort; over: all was tried
# A store that abupdate has never written to stays as it is; U-Boot's built-in environment, which it takes where both copies are
# damaged, is one.
abu_mode=count
if test "${BOOT_ORDER:-none}" = none -a "${abu_trial}" = none -a "${abu_left_A}" = none -a "${abu_left_B}" = none; then
	abu_mode=free
fi

abu_full="${abu_budget}"
if itest "${abu_full}" == 0; then abu_full=1; fi
if itest "${abu_full}" -gt ff; then abu_full=ff; fi
if test "${abu_left_A}" = none; then abu_left_A="${abu_full}"; fi
if test "${abu_left_B}" = none; then abu_left_B="${abu_full}"; fi
if itest "${abu_left_A}" -gt ff; then abu_left_A=ff; fi
if itest "${abu_left_B}" -gt ff; then abu_left_B=ff; fi
if itest "${abu_timeout}" -gt 7fe; then abu_timeout=7fe; fi

# ---- the slots in order, counted; then "last": those that are not on trial, counters reset; then "rest": only where the order
# names no such slot
abu_failed=none
abu_unsaved=no
abu_skipped=no
abu_any=no
for abu_slot in ${abu_order} last ${abu_order} rest A B; do
	abu_go=no
	abu_save=no
	abu_kind=none
	if test ${abu_mode} = count; then abu_unsaved=no; fi
	abu_set_A=none
	abu_set_B=none
	if test "${abu_slot}" = A -o "${abu_slot}" = B; then
		if test ${abu_slot} = A; then
			abu_left=${abu_left_A} ; abu_part=${abu_part_A} ; abu_root=${abu_root_A} ; abu_verity="${abu_verity_A}"
		else
			abu_left=${abu_left_B} ; abu_part=${abu_part_B} ; abu_root=${abu_root_B} ; abu_verity="${abu_verity_B}"
		fi
		abu_kind=confirmed
		if test "${abu_trial}" = ${abu_slot}; then abu_kind=trial; fi
		if test ${abu_mode} = free -o ${abu_mode} = last; then
			if test ${abu_kind} = confirmed; then abu_go=yes ; abu_any=yes; fi
		fi
		if test ${abu_mode} = count; then
			if itest "${abu_left}" -gt 0; then
				abu_go=yes
				if test ${abu_kind} = trial; then abu_save=yes; fi
				if itest "${abu_budget}" -gt 0; then abu_save=yes; fi
			else
				echo "abupdate: slot ${abu_slot} ${abu_kind} has no boots left"
			fi
		fi
		if test ${abu_save} = yes; then
			setexpr abu_x ${abu_left} - 1
			if test ${abu_slot} = A; then abu_set_A=${abu_x}; else abu_set_B=${abu_x}; fi
		fi
	fi
	if test "${abu_slot}" = rest -a ${abu_any} = yes; then abu_mode=over; fi
	if test "${abu_slot}" = last -a ${abu_mode} = free; then abu_mode=over; fi
	if test "${abu_slot}" = last -a ${abu_mode} = count; then
		echo "abupdate: no slot could be started, last resort"
		abu_mode=last
		for abu_s in ${abu_order}; do
			if test "${abu_s}" = A -a "${abu_trial}" != A; then abu_set_A=${abu_full} ; abu_save=yes; fi
			if test "${abu_s}" = B -a "${abu_trial}" != B; then abu_set_B=${abu_full} ; abu_save=yes; fi
		done
	fi

	if test ${abu_save} = yes; then
		abu_unsaved=yes
		abu_fits=yes
		setenv abu_x ; setenv abu_s1 ; setenv abu_s2 ; setenv abu_s3 ; setenv abu_s4
		env import -d -b ${abu_keep} ${abu_size} bootargs
		if test ${abu_set_A} != none; then
			setenv BOOT_A_LEFT ${abu_set_A}
			if itest "${BOOT_A_LEFT}" == ${abu_set_A}; then true; else abu_fits=no; fi
		fi
		if test ${abu_set_B} != none; then
			setenv BOOT_B_LEFT ${abu_set_B}
			if itest "${BOOT_B_LEFT}" == ${abu_set_B}; then true; else abu_fits=no; fi
		fi
		# Believed only where a copy on the medium has changed and is what was saved: worn cards take writes and forget them.
		if test ${abu_copy0} != none; then
			${abu_env_if} dev ${abu_env_num}
			${abu_env_if} read ${abu_was0} ${abu_copy0} ${abu_blocks}
			${abu_env_if} read ${abu_was1} ${abu_copy1} ${abu_blocks}
		fi
		if test ${abu_fits} = yes; then
			if saveenv; then
				if test ${abu_copy0} = none; then
					abu_unsaved=no
				else
					env export -c -s ${abu_size} ${abu_out}
					${abu_env_if} read ${abu_now} ${abu_copy0} ${abu_blocks}
					if cmp.b ${abu_was0} ${abu_now} ${abu_size}; then true; else
						if cmp.b ${abu_out_data} ${abu_now_data} ${abu_length}; then abu_unsaved=no; fi
					fi
					${abu_env_if} read ${abu_now} ${abu_copy1} ${abu_blocks}
					if cmp.b ${abu_was1} ${abu_now} ${abu_size}; then true; else
						if cmp.b ${abu_out_data} ${abu_now_data} ${abu_length}; then abu_unsaved=no; fi
					fi
				fi
			fi
		fi
		if test ${abu_unsaved} = no; then
			if test ${abu_set_A} != none; then abu_left_A=${abu_set_A}; fi
			if test ${abu_set_B} != none; then abu_left_B=${abu_set_B}; fi
			if test "${abu_slot}" = A; then abu_left=${abu_left_A}; fi
			if test "${abu_slot}" = B; then abu_left=${abu_left_B}; fi
		else
			echo "abupdate: the counters cannot be written"
			if test ${abu_set_A} != none; then setenv BOOT_A_LEFT ${abu_left_A}; fi
			if test ${abu_set_B} != none; then setenv BOOT_B_LEFT ${abu_left_B}; fi
			if test ${abu_kind} = trial; then abu_go=no ; abu_skipped=yes; fi
		fi
	fi

	if test ${abu_go} = yes; then
		echo "abupdate: slot ${abu_slot} ${abu_kind} left ${abu_left}"
		setenv bootargs "${abu_args} root=${abu_root} ro abupdate.slot=${abu_slot} panic=10"
		if test "${abu_verity}" != none; then setenv bootargs "${bootargs} abupdate.verity=${abu_verity}"; fi
		if test ${abu_failed} != none; then setenv bootargs "${bootargs} abupdate.failed=${abu_failed}"; fi
		if test ${abu_unsaved} = yes -o ${abu_skipped} = yes; then setenv bootargs "${bootargs} abupdate.unsaved=1"; fi
		if test ${abu_kind} = trial; then
			# Decimal seconds for the kernel, digit by digit since setexpr knows hexadecimal only.
			setexpr abu_s4 ${abu_timeout} / 3e8
			setexpr abu_x ${abu_timeout} % 3e8 ; setexpr abu_s3 ${abu_x} / 64
			setexpr abu_x ${abu_timeout} % 64 ; setexpr abu_s2 ${abu_x} / a
			setexpr abu_s1 ${abu_timeout} % a
			abu_seconds=${abu_s4}${abu_s3}${abu_s2}${abu_s1}
			if itest "${abu_timeout}" -lt 3e8; then abu_seconds=${abu_s3}${abu_s2}${abu_s1}; fi
			if itest "${abu_timeout}" -lt 64; then abu_seconds=${abu_s2}${abu_s1}; fi
			if itest "${abu_timeout}" -lt a; then abu_seconds=${abu_s1}; fi
			setenv bootargs "${bootargs} abupdate.trial=1 abupdate.boot_timeout=${abu_seconds} watchdog.open_timeout=${abu_seconds}"
		fi
		if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_kernel} ${abu_kernel}; then
			if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_initrd} ${abu_initrd}; then
				abu_armed=no
				# A running watchdog cannot be stopped for the next slot, so it is armed only for what looks like a kernel.
				if test ${abu_kind} = trial && itest "${abu_timeout}" -gt 0 && itest.l *${abu_magic_at} == 0x644d5241; then
					if run abu_arm; then abu_armed=yes ; echo "abupdate: watchdog armed, ${abu_seconds} s"; fi
				fi
				booti ${abu_at_kernel} ${abu_at_initrd}:${filesize} ${abu_at_fdt}
				if test ${abu_armed} = yes; then reset; fi
			fi
		fi
		echo "abupdate: slot ${abu_slot} could not be started"
		if test ${abu_failed} = A -a ${abu_slot} = B; then abu_failed=A,B; fi
		if test ${abu_failed} = B -a ${abu_slot} = A; then abu_failed=B,A; fi
		if test ${abu_failed} = none; then abu_failed=${abu_slot}; fi
	fi
done
echo "abupdate: no slot can be started, reset"
reset
