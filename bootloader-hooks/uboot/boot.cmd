# abupdate: which slot boots, for stock U-Boot. Compile: mkimage -A arm64 -T script -C none -d boot.cmd boot.scr
#
# Reads   BOOT_ORDER ("A B")  BOOT_A_LEFT BOOT_B_LEFT (BOOT_BUDGET)  BOOT_TRIAL (no slot)  BOOT_BUDGET (a)  BOOT_TIMEOUT (78)
#         numbers are hexadecimal, in brackets what holds where a variable is missing
# Writes  BOOT_A_LEFT BOOT_B_LEFT: the slot that is tried, or all of them in the last resort
# Every other variable in the environment area stays as it is; the environment that U-Boot itself runs with is not saved.
#
# Two rules of U-Boot shell shape what follows. A variable of the environment hides a shell variable of the same name, so
# results of setexpr go through abu_x. While the stored environment is loaded to be written, only shell variables survive.

# ---- layout: adapt this block to the board ------------------------------------------------------------------------
abu_if=virtio                          # block interface and device number, as in "load virtio 0:3"
abu_num=0
abu_scan="virtio scan"                 # makes the device known
abu_lba0=0x4800                        # first sector of copy 0 of the environment
abu_lba1=0x4c00                        # first sector of copy 1
abu_size=0x4000                        # bytes of one copy
abu_part_A=3                           # partitions with kernel and initrd
abu_part_B=4
abu_root_A=PARTLABEL=rootfs_a
abu_root_B=PARTLABEL=rootfs_b
abu_kernel=/vmlinuz
abu_initrd=/initrd.img
abu_args="console=ttyAMA0"             # what every kernel gets besides
abu_ram=0x40240000                     # 0x180000 bytes of scratch memory that neither this script nor kernel or initrd use
abu_at_kernel=${kernel_addr_r}
abu_at_initrd=${ramdisk_addr_r}
abu_at_fdt=${fdtcontroladdr}
# -------------------------------------------------------------------------------------------------------------------

setexpr abu_x ${abu_size} / 0x200 ; abu_blocks=${abu_x}
setexpr abu_x ${abu_size} - 1 ; abu_len=${abu_x}
# copy 0, copy 1: as read; +1 is where "env import -c" of a U-Boot built without redundancy wants CRC and data
setexpr abu_x ${abu_ram} + 0x0 ; abu_c0=${abu_x}
setexpr abu_x ${abu_c0} + 1 ; abu_c0_import=${abu_x}
setexpr abu_x ${abu_c0} + 4 ; abu_c0_flag=${abu_x}
setexpr abu_x ${abu_ram} + 0x40000 ; abu_c1=${abu_x}
setexpr abu_x ${abu_c1} + 1 ; abu_c1_import=${abu_x}
setexpr abu_x ${abu_c1} + 4 ; abu_c1_flag=${abu_x}
# the copy to write, in the same two forms; its last two bytes
setexpr abu_x ${abu_ram} + 0x80000 ; abu_out=${abu_x}
setexpr abu_x ${abu_out} + 1 ; abu_out_export=${abu_x}
setexpr abu_x ${abu_out} + 4 ; abu_out_flag=${abu_x}
setexpr abu_x ${abu_out} + ${abu_size} ; setexpr abu_x ${abu_x} - 2 ; abu_out_end=${abu_x}
# the running environment, put aside; what was written, read back; four bytes in between
setexpr abu_x ${abu_ram} + 0xc0000 ; abu_aside=${abu_x}
setexpr abu_x ${abu_ram} + 0x100000 ; abu_check=${abu_x}
setexpr abu_x ${abu_ram} + 0x140000 ; abu_tmp=${abu_x}

pci enum
${abu_scan}
${abu_if} dev ${abu_num}

# ---- read both copies; BOOT_ORDER is imported only to have the checksum verified
abu_ok0=no
abu_ok1=no
if ${abu_if} read ${abu_c0} ${abu_lba0} ${abu_blocks}; then
	setexpr.b abu_x *${abu_c0_flag} ; abu_flag0=${abu_x}
	cp.b ${abu_c0} ${abu_tmp} 4
	cp.b ${abu_tmp} ${abu_c0_import} 4
	if env import -c ${abu_c0_import} ${abu_len} BOOT_ORDER; then abu_ok0=yes; fi
fi
if ${abu_if} read ${abu_c1} ${abu_lba1} ${abu_blocks}; then
	setexpr.b abu_x *${abu_c1_flag} ; abu_flag1=${abu_x}
	cp.b ${abu_c1} ${abu_tmp} 4
	cp.b ${abu_tmp} ${abu_c1_import} 4
	if env import -c ${abu_c1_import} ${abu_len} BOOT_ORDER; then abu_ok1=yes; fi
fi

# The larger flag is the newer copy, except that 0 follows 255; equal flags: copy 0, as libubootenv has it.
abu_win=none
if test ${abu_ok0} = yes; then abu_win=0; fi
if test ${abu_ok1} = yes; then
	if test ${abu_ok0} = yes; then
		if itest ${abu_flag1} -gt ${abu_flag0}; then abu_win=1; fi
		if test ${abu_flag0} = ff -a ${abu_flag1} = 0; then abu_win=1; fi
		if test ${abu_flag0} = 0 -a ${abu_flag1} = ff; then abu_win=0; fi
	else
		abu_win=1
	fi
fi

# Names that the stored copy lacks would keep the values of the running environment.
setenv BOOT_ORDER ; setenv BOOT_A_LEFT ; setenv BOOT_B_LEFT ; setenv BOOT_TRIAL ; setenv BOOT_BUDGET ; setenv BOOT_TIMEOUT

# abu_mode: count, or free: nothing is counted and nothing is written
abu_mode=count
if test ${abu_win} = none; then
	echo "abupdate: no valid environment, nothing will be written"
	abu_mode=free
fi
if test ${abu_win} = 0; then
	abu_from=${abu_c0_import} ; abu_to=${abu_lba1} ; abu_next=${abu_lba0}
	setexpr abu_x ${abu_flag0} + 1
fi
if test ${abu_win} = 1; then
	abu_from=${abu_c1_import} ; abu_to=${abu_lba0} ; abu_next=${abu_lba1}
	setexpr abu_x ${abu_flag1} + 1
fi
if test ${abu_mode} = count; then
	setexpr abu_x ${abu_x} % 0x100 ; abu_flag=${abu_x}
	env import -c ${abu_from} ${abu_len} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BOOT_TRIAL BOOT_BUDGET BOOT_TIMEOUT
fi

abu_order="${BOOT_ORDER:-A B}"
abu_trial="${BOOT_TRIAL:-none}"
abu_budget="${BOOT_BUDGET:-a}"
abu_timeout="${BOOT_TIMEOUT:-78}"
abu_left_A="${BOOT_A_LEFT:-none}"
abu_left_B="${BOOT_B_LEFT:-none}"
echo "abupdate: order ${abu_order}, left A ${abu_left_A} B ${abu_left_B}, trial ${abu_trial}, budget ${abu_budget}, timeout ${abu_timeout}"

# A store that abupdate has never written to stays as it is, so that the agent can see that.
if test "${BOOT_ORDER:-none}" = none -a "${abu_trial}" = none -a "${abu_left_A}" = none -a "${abu_left_B}" = none; then
	abu_mode=free
fi

abu_full="${abu_budget}"
if itest "${abu_full}" == 0; then abu_full=1; fi
if test "${abu_left_A}" = none; then abu_left_A="${abu_full}"; fi
if test "${abu_left_B}" = none; then abu_left_B="${abu_full}"; fi

# Seconds in decimal for the kernel, by its digits (setexpr knows only hexadecimal); at most 2046, which the watchdog can do.
if itest "${abu_timeout}" -gt 0x7fe; then abu_timeout=7fe; fi
setexpr abu_x ${abu_timeout} / 0x3e8 ; abu_s4=${abu_x}
setexpr abu_x ${abu_timeout} % 0x3e8 ; setexpr abu_x ${abu_x} / 0x64 ; abu_s3=${abu_x}
setexpr abu_x ${abu_timeout} % 0x64 ; setexpr abu_x ${abu_x} / 0xa ; abu_s2=${abu_x}
setexpr abu_x ${abu_timeout} % 0xa ; abu_s1=${abu_x}
abu_seconds=${abu_s4}${abu_s3}${abu_s2}${abu_s1}
if itest ${abu_timeout} -lt 0x3e8; then abu_seconds=${abu_s3}${abu_s2}${abu_s1}; fi
if itest ${abu_timeout} -lt 0x64; then abu_seconds=${abu_s2}${abu_s1}; fi
if itest ${abu_timeout} -lt 0xa; then abu_seconds=${abu_s1}; fi

# ---- the slots in order; "last" turns to the last resort: the slots that are not on trial, with their counters reset
for abu_slot in ${abu_order} last ${abu_order}; do
	abu_go=no
	abu_save=no
	abu_saved=no
	abu_set_A=none
	abu_set_B=none
	if test "${abu_slot}" = A -o "${abu_slot}" = B; then
		if test ${abu_slot} = A; then
			abu_left=${abu_left_A} ; abu_part=${abu_part_A} ; abu_root=${abu_root_A}
		else
			abu_left=${abu_left_B} ; abu_part=${abu_part_B} ; abu_root=${abu_root_B}
		fi
		abu_kind=confirmed
		if test "${abu_trial}" = ${abu_slot}; then abu_kind=trial; fi
		if test ${abu_mode} = free; then
			if test ${abu_kind} = confirmed; then abu_go=yes; fi
		else
			if itest ${abu_left} -gt 0; then
				abu_go=yes
				if test ${abu_kind} = trial; then abu_save=yes; fi
				if itest ${abu_budget} -gt 0; then abu_save=yes; fi
			else
				echo "abupdate: slot ${abu_slot} ${abu_kind} has no boots left"
			fi
		fi
		if test ${abu_save} = yes; then
			setexpr abu_x ${abu_left} - 1 ; abu_left=${abu_x}
			if test ${abu_slot} = A; then abu_set_A=${abu_left}; else abu_set_B=${abu_left}; fi
		fi
	fi
	if test "${abu_slot}" = last -a ${abu_mode} = count; then
		echo "abupdate: no slot could be started, last resort"
		abu_mode=free
		abu_save=yes
		for abu_s in ${abu_order}; do
			if test "${abu_s}" = A -a "${abu_trial}" != A; then abu_set_A=${abu_full}; fi
			if test "${abu_s}" = B -a "${abu_trial}" != B; then abu_set_B=${abu_full}; fi
		done
	fi

	if test ${abu_save} = yes; then
		# The running environment is put aside, the stored one loaded alone, changed, exported, and the former restored.
		env export -b ${abu_aside}
		abu_aside_size=${filesize}
		env import -d -c ${abu_from} ${abu_len}
		setenv .flags
		setenv .callbacks
		if test ${abu_set_A} != none; then setenv BOOT_A_LEFT ${abu_set_A}; fi
		if test ${abu_set_B} != none; then setenv BOOT_B_LEFT ${abu_set_B}; fi
		env export -c -s ${abu_len} ${abu_out_export}
		env import -d -b ${abu_aside} ${abu_aside_size}
		# An export that does not fit is cut off silently; only then are the last two bytes not the end of the list.
		if itest.w *${abu_out_end} == 0; then
			cp.b ${abu_out_export} ${abu_tmp} 4
			cp.b ${abu_tmp} ${abu_out} 4
			mw.b ${abu_out_flag} ${abu_flag}
			if ${abu_if} write ${abu_out} ${abu_to} ${abu_blocks}; then
				mw.b ${abu_check} 0 ${abu_size}
				${abu_if} read ${abu_check} ${abu_to} ${abu_blocks}
				if cmp.b ${abu_out} ${abu_check} ${abu_size}; then abu_saved=yes; fi
			fi
		fi
		if test ${abu_saved} = yes; then
			# A second write in this boot goes to the other copy.
			if test ${abu_set_A} != none; then abu_left_A=${abu_set_A}; fi
			if test ${abu_set_B} != none; then abu_left_B=${abu_set_B}; fi
			cp.b ${abu_tmp} ${abu_out_export} 4
			cp.b ${abu_out_export} ${abu_from} ${abu_len}
			abu_s=${abu_to} ; abu_to=${abu_next} ; abu_next=${abu_s}
			setexpr abu_x ${abu_flag} + 1 ; setexpr abu_x ${abu_x} % 0x100 ; abu_flag=${abu_x}
		else
			echo "abupdate: the environment cannot be written"
			if test ${abu_go} = yes -a ${abu_kind} = trial; then abu_go=no; fi
		fi
	fi

	if test ${abu_go} = yes; then
		echo "abupdate: slot ${abu_slot} ${abu_kind} left ${abu_left}"
		setenv bootargs "${abu_args} root=${abu_root} ro abupdate.slot=${abu_slot} panic=10"
		if test ${abu_kind} = trial; then
			setenv bootargs "${bootargs} abupdate.trial=1 abupdate.boot_timeout=${abu_seconds} watchdog.open_timeout=${abu_seconds}"
		fi
		if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_kernel} ${abu_kernel}; then
			if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_initrd} ${abu_initrd}; then
				booti ${abu_at_kernel} ${abu_at_initrd}:${filesize} ${abu_at_fdt}
			fi
		fi
		echo "abupdate: slot ${abu_slot} could not be started"
	fi
done
echo "abupdate: no slot can be started, reset"
reset
