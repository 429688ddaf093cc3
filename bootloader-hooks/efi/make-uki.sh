#!/bin/sh
# Makes a unified kernel image: one EFI program of kernel and initramfs, for an image `uki`. Runs where the bundle is made.
# Usage: make-uki.sh KERNEL INITRAMFS OUT.efi [STUB]
# STUB: of the package systemd-boot-efi, for the machine that boots it. No kernel arguments go in: each slot's boot entry has its own.
set -eu

[ $# -ge 3 ] || {
	sed -n '2,4s/^# //p' "$0" >&2
	exit 2
}
kernel=$1 initramfs=$2 out=$3 stub=${4:-/usr/lib/systemd/boot/efi/linuxx64.efi.stub}
objcopy=${OBJCOPY:-objcopy}

for file in "$kernel" "$initramfs" "$stub"; do
	[ -f "$file" ] || {
		echo "make-uki: there is no $file" >&2
		exit 2
	}
done

# Behind the stub, and each behind the one before: an overlap would be loaded as it comes.
first=$((0x2000000))
second=$((first + ($(wc -c <"$kernel") + 0xfffff) / 0x100000 * 0x100000))
osrel=/dev/null
[ ! -f /etc/os-release ] || osrel=/etc/os-release

"$objcopy" \
	--add-section .osrel="$osrel" --change-section-vma .osrel=0x20000 \
	--add-section .linux="$kernel" --change-section-vma ".linux=$(printf '0x%x' "$first")" \
	--add-section .initrd="$initramfs" --change-section-vma ".initrd=$(printf '0x%x' "$second")" \
	"$stub" "$out"
