"""BlockTarget on real files, loop devices, tmpfs and ramfs: same behaviour, exclusive, past the page cache, whole or refused."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abupdate.devices.block import BLOCK_BYTES, BlockTarget, aligned_buffer, open_readonly, open_target, size_of
from abupdate.errors import Busy, ConfigError, Failed
from abupdate.ports import SparseTarget, Target

Loop = Callable[[Path], Path]
Mount = Callable[..., Path]
MIB = 1 << 20


def content(path: Path) -> bytes:
    return path.read_bytes()


def blank(path: Path, size_bytes: int, fill: bytes = b"\xa5") -> Path:
    path.write_bytes(fill * size_bytes)
    return path


def buffer_of(data: bytes) -> memoryview:
    view = aligned_buffer(max(len(data), 1))[: len(data)]
    view[:] = data
    return view


def open_descriptors() -> set[str]:
    # Names only: the descriptor that lists the folder is the same each time.
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_is_a_target(slot: Path) -> None:
    with open_target(slot) as target:
        assert isinstance(target, Target)
        assert isinstance(target, SparseTarget)
        assert target.size_bytes == 8 * MIB == size_of(slot)
        assert target.direct


def test_writes_land_and_come_back(slot: Path) -> None:
    data = os.urandom(MIB)
    with open_target(slot) as target:
        target.pwrite(buffer_of(data), 3 * MIB)
        target.flush()
        back = aligned_buffer(MIB)
        assert target.pread_into(back, 3 * MIB) == MIB
        assert back == data
    whole = content(slot)
    assert whole == b"\xa5" * 3 * MIB + data + b"\xa5" * 4 * MIB


@pytest.mark.parametrize("length", [1, 512, 4097, *(pytest.param(length, marks=pytest.mark.slow) for length in (511, 4095, 70_001))])
def test_partial_last_block_leaves_the_rest_alone(slot: Path, length: int) -> None:
    data = os.urandom(length)
    with open_target(slot) as target:
        target.pwrite(buffer_of(data), BLOCK_BYTES)
        target.flush()
        back = aligned_buffer(length)
        assert target.pread_into(back, BLOCK_BYTES) == length
        assert back == data
    whole = content(slot)
    assert whole[BLOCK_BYTES : BLOCK_BYTES + length] == data
    assert set(whole[:BLOCK_BYTES] + whole[BLOCK_BYTES + length :]) == {0xA5}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_file_of_any_size_behaves_like_bytes(tmp_path: Path, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 5 * BLOCK_BYTES + 1))
    model = bytearray(b"\xa5" * size)
    path = tmp_path / "odd"
    path.write_bytes(model)
    with open_target(path) as target:
        for _ in range(data.draw(st.integers(1, 4))):
            offset = data.draw(st.integers(0, (size - 1) // BLOCK_BYTES)) * BLOCK_BYTES
            piece = data.draw(st.binary(min_size=1, max_size=min(size - offset, 2 * BLOCK_BYTES + 7)))
            target.pwrite(buffer_of(piece), offset)
            model[offset : offset + len(piece)] = piece
        target.flush()
        back = aligned_buffer(size + 100)
        assert target.pread_into(back, 0) == size
        assert back[:size] == bytes(model)
    assert path.read_bytes() == model


def test_device_that_ends_within_a_page(tmp_path: Path, loop: Loop) -> None:
    # A loop device counts in sectors of 512 bytes: 9 of them are no multiple of 4096.
    device = loop(blank(tmp_path / "odd", 9 * 512))
    with open_target(device) as target:
        assert target.size_bytes == 9 * 512
        target.pwrite(buffer_of(b"x" * 9 * 512), 0)
        target.pwrite(buffer_of(b"y" * 100), 4096)
        target.flush()
        back = aligned_buffer(8192)
        assert target.pread_into(back, 0) == 9 * 512
        assert bytes(back[: 9 * 512]) == b"x" * 4096 + b"y" * 100 + b"x" * 412


def test_unaligned_memory_is_written_all_the_same(slot: Path) -> None:
    data = os.urandom(BLOCK_BYTES * 3)
    with open_target(slot) as target:
        target.pwrite(memoryview(b"?" + data)[1:], 0)
        back = memoryview(bytearray(len(data) + 3))[3:]
        assert target.pread_into(back, 0) == len(data)
        assert back == data
        assert target.direct


def test_beyond_the_end_or_between_blocks_is_a_mistake(slot: Path) -> None:
    with open_target(slot) as target:
        with pytest.raises(ValueError, match="exceeds"):
            target.pwrite(aligned_buffer(8192), 8 * MIB - 4096)
        with pytest.raises(ValueError, match="multiple"):
            target.pwrite(aligned_buffer(512), 512)
        assert target.pread_into(aligned_buffer(4096), 8 * MIB) == 0
    assert set(content(slot)) == {0xA5}
    assert size_of(slot) == 8 * MIB


@pytest.mark.parametrize("direct", [True, False])
def test_read_back_sees_the_medium_not_the_cache(tmp_path: Path, loop: Loop, direct: bool) -> None:
    file = blank(tmp_path / "slot", MIB)
    device = loop(file)
    flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
    with device.open("rb", buffering=0) as cached, BlockTarget(device, os.open(device, flags), direct=direct) as target:
        assert cached.read(MIB) == b"\xa5" * MIB  # now in the device's page cache
        with file.open("r+b") as medium:
            medium.write(b"\x11" * MIB)  # the medium changes behind the device's cache
        assert os.pread(cached.fileno(), 1, 0) == b"\xa5", "the cache is not stale: this test proves nothing"
        back = aligned_buffer(MIB)
        assert target.pread_into(back, 0) == MIB
    assert set(back) == {0x11}


def flushes(device: Path) -> int:
    """How often the kernel flushed the device's own cache (Documentation/admin-guide/iostats.rst, field 16)."""
    return int(Path("/sys/class/block", device.name, "stat").read_text().split()[15])


@pytest.mark.parametrize("direct", [True, False])
def test_a_flush_reaches_the_device_behind_its_cache(tmp_path: Path, loop: Loop, direct: bool) -> None:
    device = loop(blank(tmp_path / "disk", MIB))
    flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
    with BlockTarget(device, os.open(device, flags), direct=direct) as target:
        target.pwrite(buffer_of(b"x" * 4096), 0)
        before = flushes(device)
        target.flush()
        assert flushes(device) > before


def test_zero_range_and_holes(slot: Path) -> None:
    with open_target(slot) as target:
        assert target.zero_range(MIB, 2 * MIB)
        assert not target.zero_range(0, 100)
        target.flush()
        back = aligned_buffer(2 * MIB)
        target.pread_into(back, MIB)
        assert not any(back)
    assert content(slot) == b"\xa5" * MIB + bytes(2 * MIB) + b"\xa5" * 5 * MIB


def test_next_data_of_a_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(64 * MIB)
        out.seek(33 * MIB)
        out.write(b"x")
    with open_target(path) as target:
        assert target.next_data(0, 64 * MIB) == 33 * MIB
        assert target.next_data(33 * MIB, 64 * MIB) == 33 * MIB
        assert target.next_data(34 * MIB, 64 * MIB) == 64 * MIB
        assert target.next_data(0, MIB) == MIB


def test_next_data_of_a_device_is_everywhere(tmp_path: Path, loop: Loop) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        out.truncate(MIB)
    with open_target(loop(path)) as target:
        assert target.next_data(4096, MIB) == 4096


def test_two_updaters_exclude_each_other(slot: Path) -> None:
    with open_target(slot), pytest.raises(Busy) as caught:
        open_target(slot)
    assert caught.value.exit_code == 5
    with open_target(slot):
        pass


def test_a_device_that_we_hold_cannot_be_mounted(ext4: Path, loop: Loop, tmp_path: Path) -> None:
    device = loop(ext4)
    with open_target(device):
        failed = subprocess.run(["mount", device, tmp_path], capture_output=True, check=False)
    assert failed.returncode != 0


def test_mounted_device_is_refused(ext4: Path, loop: Loop, mount: Mount) -> None:
    device = loop(ext4)
    point = mount(device)
    with pytest.raises(Busy, match=f"mounted at {point}"):
        open_target(device)
    with pytest.raises(Busy, match=f"{device}, which lies on it, is mounted at {point}"):
        open_target(ext4)
    with open_readonly(device) as target:
        assert target.pread_into(aligned_buffer(4096), 0) == 4096


def test_mount_in_another_namespace_is_refused(ext4: Path, loop: Loop, tmp_path: Path) -> None:
    device = loop(ext4)
    script = f"mount --make-rprivate / && mount {device} {tmp_path} && echo mounted && read line"
    with subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "mounted\n"
        with pytest.raises(Busy, match="another mount namespace"):
            open_target(device)
        other.stdin.close()


def test_partition_in_use_refuses_the_disk(tmp_path: Path, loop: Loop, mount: Mount) -> None:
    disk = loop(blank(tmp_path / "disk", 16 * MIB))
    subprocess.run(["addpart", disk, "1", "2048", "16384"], check=True)
    try:
        part = Path(f"{disk}p1")
        subprocess.run(["mkfs.ext4", "-q", "-F", part], check=True)
        point = mount(part)
        with pytest.raises(Busy, match=f"{part}, which lies on it, is mounted at {point}"):
            open_target(disk)
    finally:
        subprocess.run(["umount", point], check=True)
        subprocess.run(["delpart", disk, "1"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)  # the fixture unmounts it


def test_swap_is_refused(tmp_path: Path, loop: Loop) -> None:
    device = loop(blank(tmp_path / "swap", MIB))
    subprocess.run(["mkswap", "-q", device], check=True, capture_output=True)
    subprocess.run(["swapon", device], check=True)
    try:
        with pytest.raises(Busy, match="used as swap"):
            open_target(device)
        with pytest.raises(Busy, match="used as swap"):
            open_target(tmp_path / "swap")
    finally:
        subprocess.run(["swapoff", device], check=True)


def test_read_only_device_is_refused(tmp_path: Path, loop: Loop) -> None:
    device = loop(blank(tmp_path / "ro", MIB))
    subprocess.run(["blockdev", "--setro", device], check=True)
    with pytest.raises(ConfigError):
        open_target(device)
    subprocess.run(["blockdev", "--setrw", device], check=True)


@pytest.mark.parametrize("what", ["/nowhere/at/all", "/dev/null", "/tmp"])
def test_other_things_are_no_slots(what: str) -> None:
    with pytest.raises(ConfigError):
        open_target(what)


def test_lock_of_another_open_file(tmp_path: Path) -> None:
    path = blank(tmp_path / "slot", 4096)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="locked"):
            open_target(path)


def test_no_descriptor_is_left(slot: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with open_target(slot) as target:
            target.pwrite(buffer_of(b"odd"), 0)
            target.close()
        with open_target(slot), pytest.raises(Busy):
            open_target(slot)
    assert open_descriptors() == before


@pytest.mark.parametrize(("kind", "direct"), [("ramfs", False), ("tmpfs", True)])
def test_where_direct_io_is_refused(kind: str, direct: bool, mount: Mount) -> None:
    """ramfs refuses O_DIRECT at open; the kernel's tmpfs takes it since 6.6 (older ones: the same path as ramfs)."""
    path = blank(mount(kind, "-t", kind) / "slot", 20 * MIB + 77)
    data = os.urandom(9 * MIB + 5)
    with open_target(path) as target:
        assert target.direct or not direct or kernel() < (6, 6)
        target.pwrite(buffer_of(data), MIB)
        target.pwrite(buffer_of(b"end"), 20 * MIB)
        target.flush()
        back = aligned_buffer(len(data))
        assert target.pread_into(back, MIB) == len(data)
        assert back == data
    whole = path.read_bytes()
    assert whole[: 11 * MIB] == b"\xa5" * MIB + data + b"\xa5" * (MIB - 5)
    assert whole[20 * MIB :] == b"end" + b"\xa5" * 74


def kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)))


def test_full_file_system_is_a_failure_with_a_hint(mount: Mount) -> None:
    path = mount("tmpfs", "-t", "tmpfs", "-o", "size=1m") / "slot"
    with path.open("wb") as out:
        out.truncate(4 * MIB)
    with open_target(path) as target, pytest.raises(Failed) as caught:
        target.pwrite(buffer_of(os.urandom(4 * MIB)), 0)
    assert caught.value.exit_code == 1
    assert "full" in caught.value.hint


def test_medium_that_shrinks_is_an_io_error(tmp_path: Path, loop: Loop) -> None:
    """A loop device whose file lost its end answers with EIO: what a dying medium looks like."""
    file = blank(tmp_path / "slot", 4 * MIB)
    with open_target(loop(file)) as target:
        os.truncate(file, MIB)
        with pytest.raises(Failed, match=os.strerror(errno.EIO)) as caught:
            target.pread_into(aligned_buffer(MIB), 2 * MIB)
        assert "2097152" in caught.value.message
        assert caught.value.exit_code == 1


def test_write_error_is_reported(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse a write of ours in the middle of a file."""
    path = blank(tmp_path / "slot", 4 * MIB)
    code = (
        "import sys; from abupdate.devices.block import *; from abupdate.errors import Failed\n"
        "t = open_target(sys.argv[1]); t.pwrite(aligned_buffer(4096), 0)\n"
        "try: t.pwrite(aligned_buffer(1 << 20), 2 << 20)\n"
        "except Failed as e: print(e.message)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, preexec_fn=limit)
    assert "write at byte 2097152" in done.stdout
    assert path.read_bytes()[: 2 * MIB] == bytes(4096) + b"\xa5" * (2 * MIB - 4096)


def test_read_only_target_cannot_be_written(slot: Path) -> None:
    with open_readonly(slot) as target, pytest.raises(Failed):
        target.pwrite(buffer_of(b"x" * 4096), 0)
    assert set(content(slot)) == {0xA5}
