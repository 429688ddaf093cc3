# abupdate: which slot boots, for stock U-Boot. Compile: mkimage -A arm64 -T script -C none -d boot.cmd boot.scr
#
# Reads   BOOT_ORDER (A B)  BOOT_A_LEFT, BOOT_B_LEFT (the budget)  BOOT_TRIAL (no slot)  BOOT_BUDGET (a)  BOOT_TIMEOUT (78)
#         BOOT_A_VERITY, BOOT_B_VERITY (none): root hash of dm-verity, handed to the initramfs
#         in brackets: what holds where a variable is missing; numbers are hexadecimal, counters at most ff
# Writes  BOOT_A_LEFT, BOOT_B_LEFT: of the slot that is tried, or of all confirmed slots in the last resort
# Kernel  abupdate.slot=A panic=10; on trial abupdate.trial=1 abupdate.boot_timeout=S watchdog.open_timeout=S, S decimal seconds;
#         abupdate.verity=HASH where the slot has one;
#         abupdate.failed=B: slots that could not be started in this boot; abupdate.unsaved=1: a counter could not be written
#
# The environment lies in U-Boot own redundant layout (CRC-32, flag, data; two copies) in raw sectors, and only the digits of a
# counter are changed in a copy of it: every other byte stays. The environment U-Boot itself runs with is never saved.
# A trap of this shell: an environment variable hides a shell variable of its name. What setexpr makes is an environment
# variable, so such names are never assigned with "=" ; and "x=" does not empty a shell variable: "none" stands for nothing.

# ---- board: adapt this block --------------------------------------------------------------------------------------------
abu_if=virtio                        # block interface and device, as in "load virtio 0:3"
abu_num=0
setenv abu_scan 'pci enum; virtio scan'
abu_copy0=0x4800                     # first sectors of the two copies of the environment, and bytes of one copy
abu_copy1=0x4c00
abu_size=0x4000
abu_part_A=3                         # partitions with kernel and initrd
abu_part_B=4
abu_root_A=PARTLABEL=rootfs_a
abu_root_B=PARTLABEL=rootfs_b
abu_kernel=/vmlinuz
abu_initrd=/initrd.img
abu_args="console=ttyAMA0"           # what every kernel gets besides
abu_ram=0x40240000                   # 0x180000 bytes of scratch memory, away from this script, kernel and initrd
abu_at_kernel=${kernel_addr_r}
abu_at_initrd=${ramdisk_addr_r}
abu_at_fdt=${fdtcontroladdr}

# Arms the watchdog just before a kernel on trial starts; has abu_timeout (hexadecimal seconds, 1 to 7fe) and abu_seconds
# (decimal), succeeds when it runs. Where U-Boot has a driver: setenv abu_arm 'wdt dev NAME && wdt start ${abu_seconds}000'
# No watchdog here: setenv abu_arm false
# Here the Intel 6300ESB (QEMU: -device i6300esb,addr=1e.0) by hand: reset on expiry, ticks of 2^15 PCI clocks, two stages of
# half the time each; every register write wants 80, 86 first; enabled with the lock bit, or the driver would stop it at probe.
# The driver is told the same limit, since its probe would set 30 s; none: no such option.
abu_heartbeat=i6300esb.heartbeat
abu_esb=0.1e.0
abu_esb_config=0x40100f0000          # the same function in memory-mapped configuration space
setenv abu_arm 'setexpr abu_x ${abu_esb_config} + 0
if itest.l *${abu_x} == 0x25ab8086; then
	setexpr abu_x ${abu_esb_config} + 0x10 ; setexpr.l abu_bar *${abu_x}
	setexpr abu_reload ${abu_bar} + 0xc ; setexpr abu_stage2 ${abu_bar} + 4 ; setexpr abu_ticks ${abu_timeout} * 0x200
	pci write.w ${abu_esb} 0x60 3
	mw.w ${abu_reload} 80 ; mw.w ${abu_reload} 86 ; mw.l ${abu_bar} ${abu_ticks}
	mw.w ${abu_reload} 80 ; mw.w ${abu_reload} 86 ; mw.l ${abu_stage2} ${abu_ticks}
	mw.w ${abu_reload} 80 ; mw.w ${abu_reload} 86 ; mw.w ${abu_reload} 100
	pci write.b ${abu_esb} 0x68 3
	setexpr abu_x ${abu_esb_config} + 0x68
	itest.b *${abu_x} == 3
else
	false
fi'
# -------------------------------------------------------------------------------------------------------------------------

setexpr abu_blocks ${abu_size} / 0x200
setexpr abu_length ${abu_size} - 5
setexpr abu_c0 ${abu_ram} + 0
setexpr abu_c1 ${abu_ram} + 0x40000
setexpr abu_out ${abu_ram} + 0x80000
setexpr abu_check ${abu_ram} + 0xc0000
setexpr abu_tmp ${abu_ram} + 0x100000
setexpr abu_tmp1 ${abu_tmp} + 1
setexpr abu_tmp2 ${abu_tmp} + 2
setexpr abu_tmp3 ${abu_tmp} + 3
setexpr abu_tmp4 ${abu_tmp} + 4
setexpr abu_tmp8 ${abu_tmp} + 8
setexpr abu_crc ${abu_ram} + 0x140000
setexpr abu_crc1 ${abu_crc} + 1
setexpr abu_crc2 ${abu_crc} + 2
setexpr abu_crc3 ${abu_crc} + 3
setexpr abu_c0_flag ${abu_c0} + 4
setexpr abu_c1_flag ${abu_c1} + 4
setexpr abu_out_flag ${abu_out} + 4
setexpr abu_out_data ${abu_out} + 5
setexpr abu_out_end ${abu_out} + ${abu_size}

# abu_sum: abu_crc gets the checksum of the copy at abu_at, little-endian as it is stored ("crc32" leaves it big-endian)
setenv abu_sum 'setexpr abu_x ${abu_at} + 5
crc32 ${abu_x} ${abu_length} ${abu_tmp}
cp.b ${abu_tmp3} ${abu_crc} 1 ; cp.b ${abu_tmp2} ${abu_crc1} 1 ; cp.b ${abu_tmp1} ${abu_crc2} 1 ; cp.b ${abu_tmp} ${abu_crc3} 1'

# abu_gap: room for abu_need bytes at abu_q in abu_out; abu_fits=no where the copy is full. The last bytes of a copy that has room
# are all 0 or all ff (the list ends with two 0).
setenv abu_gap 'setexpr abu_n ${abu_need} + 2 ; setexpr abu_x ${abu_out_end} - ${abu_n}
abu_fits=no
mw.b ${abu_tmp} 0 ${abu_n}
if cmp.b ${abu_x} ${abu_tmp} ${abu_n}; then abu_fits=yes; fi
mw.b ${abu_tmp} ff ${abu_n}
if cmp.b ${abu_x} ${abu_tmp} ${abu_n}; then abu_fits=yes; fi
if test ${abu_fits} = yes; then
	setexpr abu_x ${abu_out_end} - ${abu_need} ; setexpr abu_n ${abu_x} - ${abu_q}
	cp.b ${abu_q} ${abu_tmp} ${abu_n}
	setexpr abu_x ${abu_q} + ${abu_need}
	cp.b ${abu_tmp} ${abu_x} ${abu_n}
fi'

# abu_patch: the value of BOOT_x_LEFT in abu_out becomes abu_value (at most ff); abu_name: "_x_L" as a number.
# A number shorter than its place gets zeros in front; a missing variable is put first.
setenv abu_patch 'setexpr abu_digits 1 + 0
if itest ${abu_value} -gt f; then setexpr abu_digits 2 + 0; fi
setexpr abu_p ${abu_out_flag} + 0
mw.b ${abu_p} 0
mw.b ${abu_out_end} 0
abu_found=no
while test ${abu_found} = no; do
	while itest.b *${abu_p} != 0; do setexpr abu_p ${abu_p} + 1; done
	setexpr abu_p ${abu_p} + 1
	cp.b ${abu_p} ${abu_tmp} c
	if itest.l *${abu_tmp} == 0x544f4f42; then if itest.l *${abu_tmp4} == ${abu_name}; then if itest.l *${abu_tmp8} == 0x3d544645; then
		abu_found=yes
	fi; fi; fi
	if itest.b *${abu_p} == 0; then abu_found=end; fi
	if itest ${abu_p} -ge ${abu_out_end}; then abu_found=end; fi
done
if test ${abu_found} = yes; then
	setexpr abu_q ${abu_p} + c
	setexpr abu_p ${abu_q} + 0
	while itest.b *${abu_p} != 0; do setexpr abu_p ${abu_p} + 1; done
	setexpr abu_room ${abu_p} - ${abu_q}
	if itest ${abu_room} -lt ${abu_digits}; then
		setexpr abu_need ${abu_digits} - ${abu_room}
		run abu_gap
		setexpr abu_room ${abu_digits} + 0
	fi
else
	setexpr abu_q ${abu_out_data} + 0
	setexpr abu_need ${abu_digits} + d
	run abu_gap
	setexpr abu_q ${abu_out_data} + c
	setexpr abu_room ${abu_digits} + 0
	if test ${abu_fits} = yes; then
		mw.l ${abu_tmp} 0x544f4f42 ; mw.l ${abu_tmp4} ${abu_name} ; mw.l ${abu_tmp8} 0x3d544645
		cp.b ${abu_tmp} ${abu_out_data} c
		setexpr abu_p ${abu_q} + ${abu_digits}
		mw.b ${abu_p} 0
	fi
fi
if test ${abu_fits} = yes; then
	mw.b ${abu_q} 30 ${abu_room}
	setexpr abu_p ${abu_q} + ${abu_room} ; setexpr abu_p ${abu_p} - 1
	setexpr abu_x ${abu_value} % 10
	if itest ${abu_x} -gt 9; then setexpr abu_x ${abu_x} + 57; else setexpr abu_x ${abu_x} + 30; fi
	mw.b ${abu_p} ${abu_x}
	if itest ${abu_digits} == 2; then
		setexpr abu_p ${abu_p} - 1
		setexpr abu_x ${abu_value} / 10
		if itest ${abu_x} -gt 9; then setexpr abu_x ${abu_x} + 57; else setexpr abu_x ${abu_x} + 30; fi
		mw.b ${abu_p} ${abu_x}
	fi
fi'

# ---- read both copies
run abu_scan
${abu_if} dev ${abu_num}
abu_ok0=no
abu_ok1=no
if ${abu_if} read ${abu_c0} ${abu_copy0} ${abu_blocks}; then
	abu_at=${abu_c0} ; run abu_sum
	if itest.l *${abu_c0} == *${abu_crc}; then abu_ok0=yes; fi
fi
if ${abu_if} read ${abu_c1} ${abu_copy1} ${abu_blocks}; then
	abu_at=${abu_c1} ; run abu_sum
	if itest.l *${abu_c1} == *${abu_crc}; then abu_ok1=yes; fi
fi
setexpr.b abu_flag0 *${abu_c0_flag}
setexpr.b abu_flag1 *${abu_c1_flag}

# The larger flag is the newer copy, except that 0 follows ff; equal flags: copy 0, as libubootenv has it.
abu_newer=none
if test ${abu_ok0} = yes; then abu_newer=0; fi
if test ${abu_ok1} = yes; then
	if test ${abu_ok0} = yes; then
		if itest ${abu_flag1} -gt ${abu_flag0}; then abu_newer=1; fi
		if itest ${abu_flag0} == ff && itest ${abu_flag1} == 0; then abu_newer=1; fi
		if itest ${abu_flag0} == 0 && itest ${abu_flag1} == ff; then abu_newer=0; fi
	else
		abu_newer=1
	fi
fi

# Names that the stored copy lacks must not keep what U-Boot itself runs with.
setenv BOOT_ORDER ; setenv BOOT_A_LEFT ; setenv BOOT_B_LEFT ; setenv BOOT_TRIAL ; setenv BOOT_BUDGET ; setenv BOOT_TIMEOUT
setenv BOOT_A_VERITY ; setenv BOOT_B_VERITY

# abu_mode: count; free: nothing is counted or written; last: the last resort; over: all was tried
abu_mode=count
if test ${abu_newer} = none; then
	echo "abupdate: no valid environment, nothing will be written"
	abu_mode=free
else
	if test ${abu_newer} = 0; then
		abu_from=${abu_c0} ; abu_to=${abu_copy1} ; abu_next=${abu_copy0} ; abu_flag=${abu_flag0}
	else
		abu_from=${abu_c1} ; abu_to=${abu_copy0} ; abu_next=${abu_copy1} ; abu_flag=${abu_flag1}
	fi
	setexpr abu_x ${abu_from} + 5
	env import -b ${abu_x} ${abu_length} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT BOOT_TRIAL BOOT_BUDGET BOOT_TIMEOUT BOOT_A_VERITY BOOT_B_VERITY
fi

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

# A store that abupdate has never written to stays as it is, so that its agent can see that.
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

# Decimal seconds for the kernel, digit by digit since setexpr knows hexadecimal only; 7fe is the most that the watchdog can do.
if itest "${abu_timeout}" -gt 7fe; then abu_timeout=7fe; fi
setexpr abu_s4 ${abu_timeout} / 3e8
setexpr abu_x ${abu_timeout} % 3e8 ; setexpr abu_s3 ${abu_x} / 64
setexpr abu_x ${abu_timeout} % 64 ; setexpr abu_s2 ${abu_x} / a
setexpr abu_s1 ${abu_timeout} % a
abu_seconds=${abu_s4}${abu_s3}${abu_s2}${abu_s1}
if itest "${abu_timeout}" -lt 3e8; then abu_seconds=${abu_s3}${abu_s2}${abu_s1}; fi
if itest "${abu_timeout}" -lt 64; then abu_seconds=${abu_s2}${abu_s1}; fi
if itest "${abu_timeout}" -lt a; then abu_seconds=${abu_s1}; fi

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
			abu_left=${abu_left_A} ; abu_part=${abu_part_A} ; abu_root=${abu_root_A}
			abu_verity="${abu_verity_A}"
		else
			abu_left=${abu_left_B} ; abu_part=${abu_part_B} ; abu_root=${abu_root_B}
			abu_verity="${abu_verity_B}"
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
		cp.b ${abu_from} ${abu_out} ${abu_size}
		if test ${abu_set_A} != none; then
			abu_value=${abu_set_A} ; abu_name=0x4c5f415f
			run abu_patch
		fi
		if test ${abu_set_B} != none -a ${abu_fits} = yes; then
			abu_value=${abu_set_B} ; abu_name=0x4c5f425f
			run abu_patch
		fi
		# Believed only when it says what it should, is written, and is read back the same.
		if test ${abu_fits} = yes; then
			setexpr abu_x ${abu_flag} + 1 ; mw.b ${abu_out_flag} ${abu_x}
			abu_at=${abu_out} ; run abu_sum
			cp.b ${abu_crc} ${abu_out} 4
			env import -b ${abu_out_data} ${abu_length} BOOT_A_LEFT BOOT_B_LEFT
			if test ${abu_set_A} != none; then if itest "${BOOT_A_LEFT}" == ${abu_set_A}; then true; else abu_fits=no; fi; fi
			if test ${abu_set_B} != none; then if itest "${BOOT_B_LEFT}" == ${abu_set_B}; then true; else abu_fits=no; fi; fi
		fi
		if test ${abu_fits} = yes; then
			if ${abu_if} write ${abu_out} ${abu_to} ${abu_blocks}; then
				mw.b ${abu_check} 0 ${abu_size}
				${abu_if} read ${abu_check} ${abu_to} ${abu_blocks}
				if cmp.b ${abu_out} ${abu_check} ${abu_size}; then abu_unsaved=no; fi
			fi
		fi
		if test ${abu_unsaved} = no; then
			# A second write in this boot starts from here and goes to the other copy.
			cp.b ${abu_out} ${abu_from} ${abu_size}
			abu_s=${abu_to} ; abu_to=${abu_next} ; abu_next=${abu_s}
			setexpr.b abu_x *${abu_out_flag} ; abu_flag=${abu_x}
			if test ${abu_set_A} != none; then abu_left_A=${abu_set_A}; fi
			if test ${abu_set_B} != none; then abu_left_B=${abu_set_B}; fi
			if test "${abu_slot}" = A; then abu_left=${abu_left_A}; fi
			if test "${abu_slot}" = B; then abu_left=${abu_left_B}; fi
		else
			echo "abupdate: the counters cannot be written"
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
			setenv bootargs "${bootargs} abupdate.trial=1 abupdate.boot_timeout=${abu_seconds} watchdog.open_timeout=${abu_seconds}"
		fi
		if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_kernel} ${abu_kernel}; then
			if load ${abu_if} ${abu_num}:${abu_part} ${abu_at_initrd} ${abu_initrd}; then
				abu_initrd_size=${filesize}
				abu_armed=no
				# A running watchdog cannot be stopped for the next slot, so it is armed only for what looks like a kernel.
				setexpr abu_x ${abu_at_kernel} + 38
				if test ${abu_kind} = trial && itest "${abu_timeout}" -gt 0 && itest.l *${abu_x} == 0x644d5241; then
					if run abu_arm; then
						abu_armed=yes
						if test ${abu_heartbeat} != none; then setenv bootargs "${bootargs} ${abu_heartbeat}=${abu_seconds}"; fi
						echo "abupdate: watchdog armed, ${abu_seconds} s"
					fi
				fi
				booti ${abu_at_kernel} ${abu_at_initrd}:${abu_initrd_size} ${abu_at_fdt}
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
