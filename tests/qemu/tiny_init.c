/* Process 1 of the guests of sdboot_bench.py: says what the kernel was started with, and powers off. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

int main(void)
{
	char line[4096] = "";
	int console, file;

	mount("proc", "/proc", "proc", 0, "");
	file = open("/proc/cmdline", O_RDONLY);
	console = open("/dev/console", O_RDWR);
	if (file >= 0 && read(file, line, sizeof(line) - 2) < 0)
		line[0] = 0;
	line[strcspn(line, "\n")] = 0;
	dprintf(console, "\ntiny: %s\n", line);
	fsync(console);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
