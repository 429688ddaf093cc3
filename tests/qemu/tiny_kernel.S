// The smallest arm64 "kernel" that shows what a boot script started: prints its command line, from the device tree in x0, on the
// PL011 of QEMU's virt board, then powers off through PSCI; with -DHANG it tries to stop the i6300esb as its driver would, and hangs.
	.text
	.globl	_start
_start:
	b	start
	.word	0
	.quad	0			// text offset
	.quad	end - _start		// image size
	.quad	0xa			// little-endian, 4K pages, anywhere
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.word	0
start:
	movz	x20, #0x0900, lsl #16	// PL011 data register
	adr	x1, hello
	bl	puts
	mov	x1, x0
	ldr	w2, [x0, #4]		// size of the device tree, big-endian
	rev	w2, w2
	add	x2, x0, x2
	ldr	x3, needle
1:	ldr	x4, [x1]
	cmp	x4, x3
	b.eq	2f
	add	x1, x1, #4		// property values are aligned
	cmp	x1, x2
	b.lo	1b
	b	3f
2:	bl	puts
3:	adr	x1, newline
	bl	puts
#ifdef HANG
	ldr	x1, lock_register
	strb	wzr, [x1]
#else
	movz	x0, #0x8400, lsl #16	// PSCI SYSTEM_OFF
	movk	x0, #8
	hvc	#0
#endif
4:	wfi
	b	4b
puts:	ldrb	w5, [x1], #1
	cbz	w5, 5f
	strb	w5, [x20]
	b	puts
5:	ret
	.balign	8
needle:	.ascii	"console="
lock_register:
	.quad	0x40100f0068
hello:	.asciz	"\ntiny: "
newline: .asciz	"\n"
	.balign	8
end:
