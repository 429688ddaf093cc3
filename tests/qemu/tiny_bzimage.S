/* The smallest Linux/x86 kernel that GRUB takes: prints its command line on the first serial port and ends QEMU (isa-debug-exit at
   0xf4). Boot protocol 2.06, 32-bit entry with the boot parameters at %esi. Everything is relative to where it was loaded. */

	.code32
	.text
	.org 0x1f1
	.byte 1                     /* setup_sects */
	.word 0
	.long (end - begin + 15) / 16
	.word 0, 0, 0
	.word 0xaa55
	.byte 0xeb, 0x66
	.ascii "HdrS"
	.word 0x0206
	.long 0
	.word 0, 0
	.byte 0, 1                  /* loadflags: big kernel */
	.word 0
	.long 0x100000              /* code32_start */
	.long 0, 0, 0
	.word 0
	.byte 0, 0
	.long 0
	.long 0x37ffffff            /* initrd_addr_max */
	.long 0x1000
	.byte 0, 0
	.word 0
	.long 2047                  /* cmdline_size */
	.org 0x400
begin:
	cld
	movl 0x228(%esi), %ebx
	movb $0x0a, %al
	call put
	movb $'t', %al
	call put
	movb $'i', %al
	call put
	movb $'n', %al
	call put
	movb $'y', %al
	call put
	movb $':', %al
	call put
	movb $' ', %al
	call put
1:	movb (%ebx), %al
	testb %al, %al
	jz 2f
	call put
	incl %ebx
	jmp 1b
2:	movb $0x0a, %al
	call put
	movb $0x31, %al
	movw $0xf4, %dx
	outb %al, %dx
3:	hlt
	jmp 3b
put:
	movb %al, %cl
	movw $0x3fd, %dx
4:	inb %dx, %al
	testb $0x20, %al
	jz 4b
	movb %cl, %al
	movw $0x3f8, %dx
	outb %al, %dx
	ret
	.org 0x1000
end:
