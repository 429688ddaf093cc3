"""Ordered reboots: the real calls, in a process namespace of their own, where a reboot ends the namespace and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.workstation import environ

# As the first process of its namespace it cannot reboot the machine; anywhere else it does nothing.
CALL = """
import logging, os, sys
logging.basicConfig(format="%(message)s")
from abupdate.devices import power
from abupdate.errors import Failed
if os.getpid() != 1:
    os._exit(9)
try:
    getattr(power, sys.argv[1])()
except Failed as error:
    print(error.message, flush=True)
    os._exit(3)
print("taken", flush=True)
os._exit(0)
"""


# Nothing in the places where `reboot` is looked for, then perhaps one of our own.
PLACES = """
set -e
mount -t tmpfs none /usr/sbin
[ /sbin -ef /usr/sbin ] || mount -t tmpfs none /sbin
if [ "${1#systemctl: }" != "$1" ]; then
    # systemd runs; it is asked by a program of this name alone.
    mount -t tmpfs none /run
    mkdir -p /run/systemd/system
    printf '#!/bin/sh\\n%s\\n' "${1#systemctl: }" >/usr/sbin/systemctl
    chmod 755 /usr/sbin/systemctl
    printf '#!/bin/sh\\necho reboot\\n' >/usr/sbin/reboot
    chmod 755 /usr/sbin/reboot
elif [ -n "$1" ]; then
    printf '#!/bin/sh\\n%s\\n' "$1" >/usr/sbin/reboot
    chmod 755 /usr/sbin/reboot
fi
shift
exec unshare --pid --fork --mount-proc "$@"
"""
INCAPABLE = ("setpriv", "--bounding-set=-sys_boot", "--inh-caps=-sys_boot")


def called(name: str, *before: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """The function of power.py. program: the shell script that is found as `reboot`, or, behind `systemctl: `, as that."""
    argv = ["unshare", "--mount", "sh", "-c", PLACES, "sh", program, *before, sys.executable, "-c", CALL, name]
    return subprocess.run(argv, env=environ(), capture_output=True, text=True, check=False, timeout=60)


def test_the_init_system_takes_the_order() -> None:
    done = called("reboot", program="echo ordered")
    assert (done.returncode, done.stdout) == (0, "ordered\ntaken\n"), done.stderr


def test_systemd_is_asked_in_the_way_that_keeps_a_reboot_parameter() -> None:
    done = called("reboot", program='systemctl: echo "systemctl $*"')
    assert (done.returncode, done.stdout) == (0, "systemctl reboot\ntaken\n"), done.stderr


def test_where_systemctl_fails_reboot_is_tried() -> None:
    done = called("reboot", program="systemctl: exit 1")
    assert (done.returncode, done.stdout) == (0, "reboot\ntaken\n"), done.stderr


@pytest.mark.parametrize(("program", "said"), [("", ""), ("exit 7", "/usr/sbin/reboot ended with 7\n"), ("kill -9 $$", "ended with -9\n")])
def test_without_its_answer_the_kernel_reboots(program: str, said: str) -> None:
    done = called("reboot", program=program)
    assert done.returncode == -signal.SIGHUP, "what a namespace gets instead of a reboot (pid_namespaces(7))"
    assert done.stdout == ""
    assert done.stderr.endswith(said)


def test_a_kernel_that_refuses() -> None:
    done = called("reboot_now", *INCAPABLE)
    assert (done.returncode, done.stdout) == (3, "the kernel refuses to reboot: Operation not permitted\n"), done.stderr
