"""The initramfs's watchdog armer, compiled for this machine with the kernel's answers replaced: what it asks, pets and leaves behind."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "bootloader-hooks/initramfs/arm-watchdog.c"
# The kernel's side: every ioctl is noted with its time; what it grants comes from the environment.
KERNEL = r"""
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int number(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list list;
	struct timespec now;
	void *argument;
	FILE *notes = fopen(getenv("NOTES"), "a");

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	clock_gettime(CLOCK_BOOTTIME, &now);
	fprintf(notes, "%ld.%03ld %s\n", (long)now.tv_sec, now.tv_nsec / 1000000,
		request == WDIOC_KEEPALIVE ? "pet" : request == WDIOC_SETTIMEOUT ? "set" : "other");
	fclose(notes);
	if (request == WDIOC_GETSUPPORT)
		((struct watchdog_info *)argument)->options = number("MAGIC") ? WDIOF_MAGICCLOSE : 0;
	if (request == WDIOC_SETTIMEOUT && *(int *)argument > number("MOST")) {
		errno = EINVAL;
		return -1;
	}
	if (request == WDIOC_GETTIMEOUT)
		*(int *)argument = number("GRANTED");
	return 0;
}

int __real_openat(int dir, const char *name, int flags, ...);
int __wrap_openat(int dir, const char *name, int flags, ...)
{
	if (access(getenv("TAKEN"), F_OK) == 0) {
		errno = EBUSY;
		return -1;
	}
	return __real_openat(dir, name, flags);
}
"""


@dataclass(frozen=True)
class Armer:
    """The program and the folder in which its device, its notes and the sign `taken` (by the service) lie."""

    program: Path
    folder: Path

    def run(self, seconds: str, *, granted: int, most: int, magic: bool = True) -> subprocess.CompletedProcess[str]:
        """Arm for so many seconds on hardware that grants this and takes no more than `most`."""
        device = self.folder / "watchdog0"
        device.touch()
        answers = {"GRANTED": str(granted), "MOST": str(most), "MAGIC": str(int(magic))}
        paths = {"NOTES": str(self.folder / "notes"), "TAKEN": str(self.folder / "taken")}
        command: list[str | Path] = [self.program, "-d", device, seconds]
        return subprocess.run(command, env={**answers, **paths}, capture_output=True, text=True, timeout=20, check=False)

    def pets(self) -> list[float]:
        """Times of all pets so far, in seconds of CLOCK_BOOTTIME."""
        lines = (self.folder / "notes").read_text().splitlines()
        return [float(line.split()[0]) for line in lines if line.endswith(" pet")]

    def left_behind(self) -> list[int]:
        """PIDs of the processes of this program that still run, with `@` in front of their name as it must be."""
        name = f"@{str(self.program)[1:]}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and (folder / "cmdline").read_bytes().split(b"\0")[0] == name:
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended meanwhile
        return found

    def ends(self, timeout_s: float) -> bool:
        """Wait until nothing is left behind."""
        deadline = time.monotonic() + timeout_s
        while self.left_behind():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("armer")
    kernel = folder / "kernel.c"
    kernel.write_text(KERNEL)
    wraps = ["-Wl,--wrap=ioctl", "-Wl,--wrap=openat"]
    subprocess.run(["cc", "-Wall", "-Werror", *wraps, "-o", folder / "arm-watchdog", SOURCE, kernel], check=True, timeout=60)
    return folder / "arm-watchdog"


@pytest.fixture
def armer(program: Path, tmp_path: Path) -> Armer:
    return Armer(program, tmp_path)


def test_hardware_that_takes_the_timeout_is_petted_once_and_left(armer: Armer) -> None:
    done = armer.run("20", granted=20, most=2046)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20 s of 20 s" in done.stdout
    assert len(armer.pets()) == 1
    assert armer.left_behind() == []


def test_hexadecimal_seconds(armer: Armer) -> None:
    assert "20 s of 20 s" in armer.run("0x14", granted=20, most=2046).stdout


def test_short_hardware_is_petted_on_and_fires_no_later_than_asked(armer: Armer) -> None:
    begin = time.clock_gettime(time.CLOCK_BOOTTIME)
    done = armer.run("5", granted=2, most=2)
    assert done.returncode == 0
    assert "2 s of 5 s, petted for the rest" in done.stdout
    assert len(armer.left_behind()) == 1
    assert armer.ends(8)
    last = armer.pets()[-1] - begin
    assert len(armer.pets()) >= 3
    assert last > 2, "petted beyond what the hardware grants"
    assert last + 2 <= 5.1, "the hardware fires within the time asked for"


def test_petter_ends_as_soon_as_the_service_has_the_device(armer: Armer) -> None:
    armer.run("600", granted=2, most=2)
    assert len(armer.left_behind()) == 1
    (armer.folder / "taken").touch()
    try:
        assert armer.ends(3)
    finally:
        for process in armer.left_behind():
            os.kill(process, 9)


def test_driver_that_stops_on_close_is_named(armer: Armer) -> None:
    done = armer.run("20", granted=20, most=2046, magic=False)
    assert done.returncode == 3
    assert "stops on close" in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "20x", "86401", "999999999999999999999"])
def test_wrong_seconds_are_a_usage_error(armer: Armer, seconds: str) -> None:
    assert armer.run(seconds, granted=20, most=2046).returncode == 2
    assert not (armer.folder / "notes").exists()


def test_missing_device_is_said(armer: Armer) -> None:
    done = subprocess.run([armer.program, "-d", "/nowhere/watchdog0", "20"], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "/nowhere/watchdog0" in done.stderr
