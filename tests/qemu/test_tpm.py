"""The floor's copy in the TPM of a booted machine: Debian's amd64 kernel and its CRB driver, tpm2-tools, swtpm behind QEMU."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from images.cache import TREE, Cache, run

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

KERNEL = "linux-image-cloud-amd64"
TOOLS = ("tpm2_nvread", "tpm2_nvwrite", "tpm2_nvdefine")
PYTHON = Path("/usr/bin/python3.11")
STDLIB = Path("/usr/lib/python3.11")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
PATIENCE_S = 60.0
# Process 1 of the guest. It says what the adapter says, and ends the machine.
INIT = """#!/usr/bin/python3.11 -I
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
for kind, place in ((b"proc", b"/proc"), (b"devtmpfs", b"/dev")):
    libc.mount(kind, place, kind, 0, None)
console = os.open("/dev/console", os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(console, number)
sys.path.insert(0, "/package")
try:
    from abupdate.devices.tpm import TpmFloor
    from abupdate.health.checks import _children
    floor = TpmFloor(0x1500010, "device:/dev/tpmrm0", 60.0)
    words = [floor.value()]
    for counter in WANTED:
        floor.raise_to(counter)
        words.append(floor.value())
    child = os.fork()
    if not child:
        time.sleep(600)
    print("FLOOR", *words, "CHILDREN", _children() == {child}, os.path.exists("/proc/self/task/1/children"), flush=True)
except BaseException as error:
    print("FAULT", repr(error), getattr(error, "hint", ""), flush=True)
os.sync()
libc.reboot(0x4321FEDC)
"""


@pytest.fixture(scope="module")
def kernel() -> Path:
    """Debian's kernel; downloaded where it is not cached."""
    assert platform.machine() == "x86_64", "the guest's programs are this machine's own"

    def make(folder: Path) -> None:
        package = re.search(r"Depends: (\S+)", run(["apt-cache", "depends", KERNEL]))
        assert package, "apt-get update?"
        run(["apt-get", "download", package[1]], cwd=folder)
        (deb,) = folder.glob("*.deb")
        run(["dpkg-deb", "-x", deb, folder / "tree"])
        (image,) = folder.glob("tree/boot/vmlinuz-*")
        image.rename(folder / "vmlinuz")
        shutil.rmtree(folder / "tree")
        deb.unlink()

    return Cache(TREE / ".cache/images").step("kernel-amd64", [KERNEL], make) / "vmlinuz"


def initramfs(folder: Path, wanted: tuple[int, ...]) -> Path:
    """Python, tpm2-tools and the package, from this machine."""
    tree = folder / "tree"
    for name in ("proc", "dev", "tmp", "package"):
        (tree / name).mkdir(parents=True)
    (tree / "init").write_text(INIT.replace("WANTED", repr(wanted)))
    (tree / "init").chmod(0o755)
    skipped = shutil.ignore_patterns("__pycache__", "test", "idlelib", "lib2to3", "tkinter", "ensurepip", "config-*")
    shutil.copytree(STDLIB, tree / str(STDLIB).lstrip("/"), ignore=skipped, dirs_exist_ok=True)
    shutil.copytree(TREE / "abupdate", tree / "package/abupdate", ignore=skipped)
    programs = [PYTHON, *(Path("/usr/bin") / name for name in TOOLS), *LIBRARIES.glob("libtss2-tcti-device.so*")]
    modules = [path for path in (STDLIB / "lib-dynload").glob("*.so") if path.name.startswith(("_ctypes.", "_hashlib."))]
    needed = set(programs)
    for program in (*programs, *modules):
        needed |= {Path(word) for word in re.findall(r"(/\S+\.so\S*)", run(["ldd", program]))}
    for path in needed:
        target = tree / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755)
    image = folder / "initramfs"
    listed = "\0".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with image.open("wb") as out:
        subprocess.run(["cpio", "-0", "-o", "-H", "newc", "--quiet"], input=listed.encode(), stdout=out, cwd=tree, check=True)
    return image


@contextmanager
def chip(state: Path) -> Iterator[Path]:
    """swtpm as QEMU drives it: power and start-up come over its control socket, and with the machine it ends."""
    folder = Path(tempfile.mkdtemp(prefix="swtpm-"))
    socket = folder / "control"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            while not socket.exists():
                assert process.poll() is None
            yield socket
        finally:
            process.terminate()
            process.wait(20)
            shutil.rmtree(folder)


def boot(kernel: Path, image: Path, state: Path) -> str:
    """One boot to its end; what the guest said."""
    with chip(state) as socket:
        command = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]
        command += ["-chardev", f"socket,id=c0,path={socket}", "-tpmdev", "emulator,id=t0,chardev=c0", "-device", "tpm-crb,tpmdev=t0"]
        command += [
            "-kernel",
            str(kernel),
            "-initrd",
            str(image),
            "-append",
            "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
            "-serial",
            "stdio",
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    said = [line for line in done.stdout.splitlines() if "FLOOR" in line or "FAULT" in line]
    assert len(said) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    return said[0].strip()


def test_the_floor_in_the_tpm_of_a_machine(kernel: Path, tmp_path: Path) -> None:
    """Raised, never lowered, and still there after the power was off; and this kernel lists a process's children, as not all do."""
    assert sysconfig.get_python_version() == "3.11"
    state = tmp_path / "state"
    state.mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert boot(kernel, initramfs(tmp_path / "one", (3, 7, 5)), state) == "FLOOR 0 3 7 7 CHILDREN True True"
    assert boot(kernel, initramfs(tmp_path / "two", (6, 8)), state) == "FLOOR 7 7 8 CHILDREN True True"
