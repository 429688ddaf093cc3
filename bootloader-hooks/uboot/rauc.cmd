# abupdate: which slot boots, by the variables and counting that RAUC documents for U-Boot, for a U-Boot that keeps its own
# environment where Linux reaches it (fw_printenv). [bootloader] dialect = "rauc".
# Compile: mkimage -A arm64 -T script -C none -d rauc.cmd boot.scr
#
# Reads   BOOT_ORDER (A B)  BOOT_A_LEFT, BOOT_B_LEFT (3)  BOOT_TRIAL (no slot)  BOOT_TIMEOUT (78)
# Writes  BOOT_A_LEFT, BOOT_B_LEFT: every boot is counted, of a confirmed slot too; both become 3 when no boot is left
# Kernel  rauc.slot=A abupdate.slot=A panic=10; on trial abupdate.trial=1 abupdate.boot_timeout=S watchdog.open_timeout=S
#
# Counters are compared as decimal numbers and counted as hexadecimal ones, so they mean something from 0 to 9 only; a slot that does
# not load costs a boot and a reset. boot.cmd and saveenv.cmd do better: this one is for boards that have it already.
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
abu_hex_A=3                          # partition with kernel and initrd of each slot (hexadecimal, as U-Boot counts)
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

test -n "${BOOT_ORDER}" || setenv BOOT_ORDER "A B"
test -n "${BOOT_A_LEFT}" || setenv BOOT_A_LEFT 3
test -n "${BOOT_B_LEFT}" || setenv BOOT_B_LEFT 3
abu_trial="${BOOT_TRIAL:-none}"
abu_slot=none
for abu_s in ${BOOT_ORDER}; do
	if test ${abu_slot} = none; then
		if test "${abu_s}" = A && test ${BOOT_A_LEFT} -gt 0; then
			setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1
			abu_slot=A ; abu_hex=${abu_hex_A} ; abu_root=${abu_root_A} ; abu_left=${BOOT_A_LEFT}
		fi
		if test "${abu_s}" = B && test ${BOOT_B_LEFT} -gt 0; then
			setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1
			abu_slot=B ; abu_hex=${abu_hex_B} ; abu_root=${abu_root_B} ; abu_left=${BOOT_B_LEFT}
		fi
	fi
done
if test ${abu_slot} = none; then
	echo "abupdate: no boots left, all counters reset"
	setenv BOOT_A_LEFT 3 ; setenv BOOT_B_LEFT 3
	saveenv
	reset
fi
saveenv

abu_kind=confirmed
if test "${abu_trial}" = ${abu_slot}; then abu_kind=trial; fi
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
echo "abupdate: slot ${abu_slot} ${abu_kind} left ${abu_left}"
setenv bootargs "${abu_args} root=${abu_root} ro rauc.slot=${abu_slot} abupdate.slot=${abu_slot} panic=10"
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
echo "abupdate: slot ${abu_slot} could not be started, reset"
reset
