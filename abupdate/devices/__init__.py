"""What the kernel shows of the hardware: block devices, slots, the watchdog, facts of this boot."""
