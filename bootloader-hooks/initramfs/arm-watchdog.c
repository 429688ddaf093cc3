/* Arms a watchdog for a trial boot, from the initramfs, so that a hang before the update service ends in a reset.
 *
 *   arm-watchdog [-d DEVICE] SECONDS      SECONDS decimal, or hexadecimal after 0x; DEVICE defaults to /dev/watchdog0
 *
 * Sets the timeout, looks at what the driver granted, pets once and closes WITHOUT the magic character: the hardware
 * keeps running and nobody pets it until the service opens it. Where the hardware cannot take so long a timeout, a child
 * stays behind and pets for SECONDS at most; it survives switch_root (argv[0] begins with '@', which systemd and others
 * leave alone) and ends as soon as the service has opened the device.
 *
 * Exit: 0 armed, 1 the device cannot be armed, 2 usage, 3 the driver stops the hardware on close (no protection).
 * Build: cc -static -Os -s -o arm-watchdog arm-watchdog.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_SECONDS = 86400, OPEN_TRIES = 20, OPEN_PAUSE_MS = 100 };

static int fail(const char *what, const char *device)
{
	dprintf(2, "arm-watchdog: %s: %s: %s\n", device, what, strerror(errno));
	return 1;
}

static void pause_ms(long ms)
{
	struct timespec t = { ms / 1000, (ms % 1000) * 1000000L };

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* The driver may just have been loaded: its node appears a moment later. */
static int open_device(const char *device)
{
	int fd = -1;

	for (int i = 0; i < OPEN_TRIES; i++) {
		fd = open(device, O_WRONLY | O_CLOEXEC);
		if (fd >= 0 || (errno != ENOENT && errno != ENODEV))
			return fd;
		pause_ms(OPEN_PAUSE_MS);
	}
	return fd;
}

/* Drivers without WDIOF_MAGICCLOSE stop on every close, unless nowayout forbids it. */
static int stops_on_close(const char *name, const struct watchdog_info *info)
{
	char path[128], value = '0';
	int fd;

	if (info->options & WDIOF_MAGICCLOSE)
		return 0;
	snprintf(path, sizeof(path), "/sys/class/watchdog/%s/nowayout", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, &value, 1) != 1)
			value = '0';
		close(fd);
	}
	return value != '1';
}

/* Pets by opening and closing, so that the service can take the device at any moment; EBUSY means that it has.
 * The last pet lies so that the hardware fires no later than deadline_ms. dir_fd keeps devtmpfs reachable after
 * switch_root has emptied the folder that this process knows as /dev. */
static void pet_until(int dir_fd, const char *name, long granted_s, long long deadline_ms)
{
	long step_ms = granted_s * 1000 / 3;

	while (now_ms() + granted_s * 1000 <= deadline_ms) {
		int fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);

		if (fd < 0 && errno == EBUSY)
			return;
		if (fd >= 0) {
			ioctl(fd, WDIOC_KEEPALIVE, 0);
			close(fd);
		}
		pause_ms(step_ms);
	}
}

static void leave_petter(char *argv0, const char *device, long granted_s, long long deadline_ms)
{
	char dir[128];
	const char *name = strrchr(device, '/');
	int dir_fd, null_fd;

	if (fork() != 0)
		return;
	setsid();
	argv0[0] = '@';
	snprintf(dir, sizeof(dir), "%.*s", (int)(name - device), device);
	dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	null_fd = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3 && null_fd >= 0; fd++)
		dup2(null_fd, fd);
	if (dir_fd >= 0)
		pet_until(dir_fd, name + 1, granted_s, deadline_ms);
	_exit(0);
}

int main(int argc, char **argv)
{
	const char *device = "/dev/watchdog0", *text, *name;
	struct watchdog_info info;
	long wanted_s;
	long long start_ms;
	int fd, granted_s = 0, value, options = WDIOS_ENABLECARD;
	char *end;

	if (argc == 4 && strcmp(argv[1], "-d") == 0)
		device = argv[2];
	else if (argc != 2) {
		dprintf(2, "usage: arm-watchdog [-d DEVICE] SECONDS\n");
		return 2;
	}
	text = argv[argc - 1];
	wanted_s = strtol(text, &end, strncmp(text, "0x", 2) == 0 ? 16 : 10);
	name = strrchr(device, '/');
	if (*end || wanted_s < 1 || wanted_s > MAX_SECONDS || !name || strlen(device) > 100) {
		dprintf(2, "arm-watchdog: SECONDS must be 1..%d, DEVICE an absolute path\n", MAX_SECONDS);
		return 2;
	}
	fd = open_device(device);
	if (fd < 0)
		return fail("cannot open", device);
	start_ms = now_ms();
	memset(&info, 0, sizeof(info));
	ioctl(fd, WDIOC_GETSUPPORT, &info);
	value = (int)wanted_s;
	if (ioctl(fd, WDIOC_SETTIMEOUT, &value) < 0 && errno != EINVAL && errno != ENOTTY && errno != EOPNOTSUPP)
		return fail("cannot set the timeout", device);
	if (ioctl(fd, WDIOC_GETTIMEOUT, &granted_s) < 0 || granted_s < 1)
		return fail("does not tell its timeout", device);
	/* Some drivers do not start on open; those that have started refuse this harmlessly. */
	ioctl(fd, WDIOC_SETOPTIONS, &options);
	if (ioctl(fd, WDIOC_KEEPALIVE, 0) < 0 && write(fd, "\n", 1) != 1)
		return fail("cannot be petted", device);
	close(fd);
	if (stops_on_close(name + 1, &info)) {
		dprintf(2, "arm-watchdog: %s: %.32s stops on close: this trial boot is not guarded\n", device, info.identity);
		return 3;
	}
	if (granted_s < wanted_s)
		leave_petter(argv[0], device, granted_s, start_ms + wanted_s * 1000LL);
	printf("arm-watchdog: %s: %.32s armed, %d s of %ld s%s\n", device, info.identity, granted_s, wanted_s,
	       granted_s < wanted_s ? ", petted for the rest" : "");
	return 0;
}
