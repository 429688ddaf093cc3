"""dm-verity from image to initramfs: root hashes against veritysetup, what open-verity asks of the kernel, and never a mount without it."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from abupdate.errors import ConfigError
from abupdate.formats import verity
from abupdate.host import keys
from abupdate.host import spec as specs
from abupdate.host.create import create
from abupdate.host.verity import root_hash

HOOKS = Path(__file__).resolve().parents[2] / "bootloader-hooks/initramfs"
KINDS = ("squashfs", "erofs", "ext4")
OTHER = "0" * 64
PATH = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def tool(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False, env=PATH)
    assert done.returncode == 0, done.stderr
    return done.stdout


def filesystem(kind: str, folder: Path) -> Path:
    """A file system with a few hundred blocks that do not compress."""
    tree, image = folder / "tree", folder / f"{kind}.img"
    tree.mkdir(exist_ok=True)
    (tree / "noise").write_bytes(os.urandom(1 << 20))
    match kind:
        case "squashfs":
            tool("mksquashfs", tree, image, "-quiet", "-no-progress")
        case "erofs":
            tool("mkfs.erofs", image, tree)
        case _:
            image.touch()
            os.truncate(image, 4 << 20)
            tool("mke2fs", "-q", "-t", "ext4", "-d", tree, image)
    os.truncate(image, -(-image.stat().st_size // 4096) * 4096)
    return image


def append(image: Path, *options: str) -> str:
    """Append superblock and tree with the real tool; the root hash that it names."""
    size = image.stat().st_size
    said = tool("veritysetup", "format", f"--data-blocks={size // 4096}", f"--hash-offset={size}", *options, image, image)
    return said.rpartition("Root hash:")[2].strip()


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("verity") / "open-verity"
    tool("cc", "-Wall", "-Wextra", "-Werror", "-O1", "-fsanitize=address,undefined", "-o", program, HOOKS / "open-verity.c")
    return program


def opened(opener: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(opener), *map(str, words)], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_root_hash_is_the_one_that_veritysetup_names(kind: str, tmp_path: Path) -> None:
    image = filesystem(kind, tmp_path)
    root = append(image)
    assert root_hash(image).hex() == root
    # What follows the tree, the rest of a partition, is no part of it.
    with image.open("ab") as file:
        file.write(b"rest of a larger partition")
    assert root_hash(image).hex() == root


@pytest.mark.parametrize("options", [("--salt=-",), ("--salt=" + "5a" * 256,), ("--hash-block-size=1024",), ("--data-block-size=1024",)])
def test_salts_and_sizes_of_blocks(options: tuple[str, ...], tmp_path: Path, opener: Path) -> None:
    image = filesystem("squashfs", tmp_path)
    size = image.stat().st_size
    blocks = size // 1024 if options[0].startswith("--data-block-size") else size // 4096
    said = tool("veritysetup", "format", f"--hash-offset={size}", *options, f"--data-blocks={blocks}", image, image)
    assert root_hash(image).hex() == said.rpartition("Root hash:")[2].strip()
    table = opened(opener, "-n", image, "root", OTHER).stdout.split()
    salt = options[0].removeprefix("--salt=") if "salt" in options[0] else said.rpartition("Salt:")[2].split()[0]
    assert table[9:] == [table[9], "sha256", OTHER, salt, "1", "panic_on_corruption"]
    assert int(table[1]) * 512 == size


def test_one_block_of_data_has_no_tree_at_all() -> None:
    assert verity.Superblock(4096, 4096, 1, b"").levels() == ()
    assert verity.Superblock(4096, 4096, 129, b"").levels() == (1, 2)


@pytest.mark.parametrize("place", ["data", "tree", "root"])
def test_an_image_that_was_changed_after_its_tree_is_refused(place: str, tmp_path: Path) -> None:
    image = filesystem("squashfs", tmp_path)
    size = image.stat().st_size
    append(image)
    at = {"data": size // 2, "tree": image.stat().st_size - 100, "root": size + 4096 + 5}[place]
    with image.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(ConfigError, match="its hash tree is not that of its data"):
        root_hash(image)


def superblock(**changed: object) -> bytes:
    values: dict[str, object] = {"magic": b"verity\0\0", "version": 1, "kind": 1, "uuid": bytes(16), "name": b"sha256", "data": 4096}
    values |= {"hash": 4096, "blocks": 1, "salt_bytes": 0, "pad": b"", "salt": b"", "rest": b"", **changed}
    return verity.SUPERBLOCK.pack(*values.values())


BAD = {
    "no tree": (b"", "no verity superblock behind"),
    "another version": (superblock(version=2), "version 1 with sha256"),
    "another hash": (superblock(name=b"sha512"), "version 1 with sha256"),
    "another type": (superblock(kind=0), "version 1 with sha256"),
    "odd blocks": (superblock(data=1000), "superblock is damaged"),
    "huge blocks": (superblock(hash=1 << 20), "superblock is damaged"),
    "long salt": (superblock(salt_bytes=257), "superblock is damaged"),
    "no data": (superblock(blocks=0), "of another file system"),
    "more data than there is": (superblock(blocks=2), "of another file system"),
    "overflowing": (superblock(blocks=(1 << 64) - 1), "of another file system"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_superblock_is_one_line_on_both_sides(name: str, tmp_path: Path, opener: Path) -> None:
    block, message = BAD[name]
    image = tmp_path / "image"
    image.write_bytes(b"hsqs".ljust(40, b"\0") + struct.pack("<Q", 100).ljust(4056, b"\0") + block.ljust(4096, b"\0"))
    with pytest.raises(ConfigError, match=message) as caught:
        root_hash(image)
    assert caught.value.message.startswith(str(image))
    assert caught.value.hint
    done = opened(opener, "-n", image, "root", OTHER)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert message in done.stderr


@pytest.mark.parametrize("content", [b"", b"x" * 8192, b"hsqs" + b"\xff" * 8192, b"hsqs".ljust(8192, b"\0")])
def test_what_is_no_file_system_is_refused(content: bytes, tmp_path: Path, opener: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(ConfigError, match="no squashfs, erofs or ext4"):
        root_hash(image)
    assert opened(opener, "-n", image, "root", OTHER).returncode == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_names_data_tree_and_what_to_do_about_damage(kind: str, tmp_path: Path, opener: Path) -> None:
    image = filesystem(kind, tmp_path)
    blocks = image.stat().st_size // 4096
    root = append(image, "--salt=0102")
    wanted = f"0 {blocks * 8} verity 1 {image} {image} 4096 4096 {blocks} {blocks + 1} sha256 {root} 0102 1 panic_on_corruption\n"
    assert opened(opener, "-n", image, "root", root).stdout == wanted


@pytest.mark.parametrize(
    "words", [("/dev/null", "root"), ("/dev/null", "a/b", OTHER), ("/dev/null", "", OTHER), ("/dev/null", "x" * 65, OTHER)]
)
def test_wrong_usage(words: tuple[str, ...], opener: Path) -> None:
    assert opened(opener, *words).returncode == 2


@pytest.mark.parametrize("root", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 63 + "\n"])
def test_a_root_hash_is_64_digits(root: str, opener: Path) -> None:
    done = opened(opener, "/dev/null", "root", root)
    assert (done.returncode, done.stdout) == (1, "")
    assert "64 hexadecimal digits" in done.stderr


# abupdate_open_root with a command line and a program of the test's own.
SHELL = """
. "{hooks}/abupdate-trial.sh"
abupdate_say() {{ echo "said: $*" >&2; }}
cat() {{ echo "{line}"; }}
device=$(abupdate_open_root {program} /dev/vda5) || {{ echo no-root; exit; }}
echo "mount $device"
"""


@pytest.mark.parametrize(
    ("line", "program", "wanted"),
    [
        ("root=/dev/vda5 ro", "false", "mount /dev/vda5"),
        (f"root=/dev/vda5 abupdate.verity={OTHER} ro", "echo", f"mount /dev/vda5 abupdate-root {OTHER}"),
        (f"abupdate.verity={OTHER}", "false", "no-root"),
        (f"abupdate.verity={OTHER}", "/nonexistent", "no-root"),
        ("abupdate.verity=junk", "{opener}", "no-root"),
    ],
    ids=["none", "opened", "refused", "no program", "junk"],
)
def test_what_cannot_be_opened_is_not_mounted(line: str, program: str, wanted: str, opener: Path) -> None:
    script = SHELL.format(hooks=HOOKS, line=line, program=program.format(opener=opener))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{wanted}\n"
    assert ("said: dm-verity:" in done.stderr) == (wanted == "no-root")


SPEC = 'compatible = "acme"\nversion = "1"\nsecurity_counter = 1\n[images.rootfs]\nfile = "squashfs.img"\nverity = true\n'


def test_the_root_hash_is_signed_with_the_bundle(tmp_path: Path) -> None:
    root = append(filesystem("squashfs", tmp_path))
    (tmp_path / "spec.toml").write_text(SPEC)
    signer = keys.load_private(keys.generate(tmp_path / "key")[0])
    made = create(specs.load(tmp_path / "spec.toml"), tmp_path / "one.abu", [signer])
    assert [image.verity_root for image in made.images] == [bytes.fromhex(root)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("verity = true", "verity = 1"), "verity is neither true nor false"),
        (("verity = true", 'verity = true\nkind = "file"'), 'verity needs kind = "raw"'),
        (("squashfs.img", "key.pub"), "key.pub: no squashfs, erofs or ext4"),
    ],
)
def test_a_spec_that_asks_for_what_cannot_be(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    append(filesystem("squashfs", tmp_path))
    keys.generate(tmp_path / "key")
    (tmp_path / "spec.toml").write_text(SPEC.replace(*change))
    with pytest.raises(ConfigError, match=message):
        specs.load(tmp_path / "spec.toml")


@pytest.mark.parametrize(
    ("line", "reboots", "parameters"),
    [
        ("root=PARTLABEL=a ro", False, ""),
        (f"root=PARTLABEL=a abupdate.verity={OTHER}", False, "ROOT=/dev/mapper/abupdate-root\n"),
        ("root=PARTLABEL=a abupdate.verity=damaged", True, ""),
    ],
    ids=["none", "opened", "refused"],
)
def test_initramfs_tools_mounts_what_was_opened(line: str, reboots: bool, parameters: str, tmp_path: Path) -> None:
    """The script of local-premount with places of the test's own: it names the new root, or ends in a reboot."""
    text = (HOOKS / "initramfs-tools/scripts/local-premount/abupdate").read_text()
    functions = (
        (HOOKS / "abupdate-trial.sh").read_text().replace("/proc/cmdline", f"{tmp_path}/cmdline").replace("/dev/kmsg", f"{tmp_path}/kmsg")
    )
    (tmp_path / "trial.sh").write_text(functions)
    (tmp_path / "cmdline").write_text(f"{line}\n")
    (tmp_path / "param.conf").touch()
    (tmp_path / "script").write_text(
        text.replace("/scripts/abupdate-trial.sh", f"{tmp_path}/trial.sh")
        .replace("/conf/param.conf", f"{tmp_path}/param.conf")
        .replace("/bin/open-verity", f"{tmp_path}/open-verity")
    )
    programs = {
        "open-verity": f'[ "$1 $2 $3" = "/dev/vda5 abupdate-root {OTHER}" ] && echo /dev/mapper/abupdate-root',
        "sleep": 'echo "slept $1" >>"$SAID"',
        "reboot": 'echo "rebooted $1" >>"$SAID"; kill $PPID',
        "modprobe": "true",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "SAID": str(tmp_path / "said"), "ROOT": "/dev/vda5"}
    subprocess.run(["sh", str(tmp_path / "script")], env=environ, capture_output=True, timeout=30, check=False)
    assert (tmp_path / "param.conf").read_text() == parameters
    said = tmp_path / "said"
    assert (said.read_text() if said.exists() else "") == ("slept 10\nrebooted -f\n" if reboots else "")
