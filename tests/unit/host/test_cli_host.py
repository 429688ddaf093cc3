"""The verbs keys, bundle and info as scripts use them: exit codes, files, and one JSON document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abupdate.__main__ import main
from abupdate.formats import bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command line in a folder with keys r, a, b, s, a SPEC and its image; returns exit code, stdout and stderr."""

    def command(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "rootfs.img").write_bytes(b"content " * 5000)
    (tmp_path / "spec" / "spec.toml").write_text(
        'compatible = "acme"\nversion = "1.0"\nsecurity_counter = 1\nhardware_revisions = ["r1"]\n[images.rootfs]\nfile = "rootfs.img"\n'
    )
    for name in "rabs":
        assert command("-q", "keys", "generate", name) == (0, "", "")
    return command


def document(result: tuple[int, str, str], code: int = 0) -> Any:
    """The one JSON document of a command that ended with this code."""
    assert result[0] == code, result
    return json.loads(result[1])


def ring(run: Run, threshold: str = "2") -> None:
    """The contract's own keyring command."""
    words = (
        "keys keyring -o ring.abk --version 1 --root r.pub --root-threshold 1 --release a.pub --release b.pub "
        f"--release-threshold {threshold} --security s.pub --security-threshold 1 --sign r.pem"
    )
    code, _out, err = run(*words.split())
    assert (code, err) == (0, "")


def device_config(folder: Path) -> Path:
    """The configuration of a device whose keyring is ring.abk of this folder; it ends in the section trust."""
    path = folder / "config.toml"
    slots = "".join(f'[slots.{name}]\nimages = {{ rootfs = "/nonexistent/{name}" }}\n' for name in "AB")
    path.write_text(
        f'compatible = "acme"\nstate_dir = "{folder}/state"\n{slots}[bootloader]\nkind = "uboot"\n[trust]\nkeyring = "{folder}/ring.abk"\n'
    )
    return path


def test_the_whole_way(run: Run) -> None:
    ring(run)
    made = document(run("--json", "bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem"))
    assert (made["version"], made["size_bytes"]) == ("1.0", Path("out.abu").stat().st_size)
    shown = document(run("--json", "info", "out.abu", "--keyring", "ring.abk"), 3)
    assert (shown["bundle"], shown["accepted"], shown["role"]) == (made["bundle"], False, None)
    assert "signed by 1" in shown["reason"]
    signed = document(run("--json", "bundle", "sign", "out.abu", "--key", "b.pem"))
    assert signed["bundle"] == made["bundle"]
    assert len(signed["signed_by"]) == 2
    shown = document(run("--json", "info", "out.abu", "--keyring", "ring.abk"))
    assert (shown["accepted"], shown["reason"], shown["role"]) == (True, None, "release")
    assert {(item["valid"], tuple(item["roles"])) for item in shown["signatures"]} == {(True, ("release",))}
    assert shown["hardware_revisions"] == ["r1"]
    assert [(image["name"], image["size_bytes"]) for image in shown["images"]] == [("rootfs", 40000)]
    code, out, err = run("info", "out.abu", "--keyring", "ring.abk")
    assert (code, err) == (0, "")
    assert "accepted by the keyring: yes, as release" in out
    unpacked = document(run("--json", "bundle", "extract", "out.abu", "-o", "d", "--keyring", "ring.abk"))
    assert unpacked == {"images": {"rootfs": "d/rootfs.img"}, "signatures_checked": True}
    assert Path("d/rootfs.img").read_bytes() == Path("spec/rootfs.img").read_bytes()
    assert run("bundle", "sign", "out.abu", "--key", "b.pem")[0] == 4


def test_several_keys_at_once_and_a_passphrase(run: Run) -> None:
    ring(run)
    Path("pass").write_text("secret\n")
    Path("pass").chmod(0o600)
    assert run("keys", "generate", "sub/c", "--passphrase-file", "pass")[0] == 2
    Path("sub").mkdir()
    made = document(run("--json", "keys", "generate", "sub/c", "--passphrase-file", "pass", "--test"))
    assert (made["private"], made["public"], made["test"]) == ("sub/c.pem", "sub/c.pub", True)
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem", "--key", "sub/c.pem")[0] == 2
    keys = ["--key", "a.pem", "--key", "b.pem", "--key", "sub/c.pem", "--passphrase-file", "pass"]
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--level", "1", *keys)[0] == 0
    shown = document(run("--json", "info", "out.abu", "--keyring", "ring.abk"))
    assert sorted(item["roles"] for item in shown["signatures"]) == [[], ["release"], ["release"]]


@pytest.mark.parametrize(
    "words",
    [
        "keys generate a",
        "keys generate",
        "keys keyring -o x.abk --version 1 --root r.pub --release a.pub",
        "keys keyring -o x.abk --version 0 --root r.pub --release a.pub --sign r.pem",
        "keys keyring -o x.abk --version 1 --root r.pub --release a.pub --release-threshold 2 --sign r.pem",
        "keys keyring -o x.abk --version 1 --root r.pub --release a.pub --admin-threshold 1 --sign r.pem",
        "keys keyring -o x.abk --version 1 --root r.pub --release a.pub --sign a.pem",
        "keys keyring -o x.abk --version 1 --root r.pub --release missing.pub --sign r.pem",
        "keys keyring -o x.abk --version 1 --root r.pub --release a.pem --sign r.pem",
        "bundle create spec/spec.toml -o x.abu",
        "bundle create spec/missing.toml -o x.abu --key a.pem",
        "bundle create spec/spec.toml -o missing/x.abu --key a.pem",
        "bundle create spec/spec.toml -o x.abu --key a.pem --key a.pem",
        "bundle create spec/spec.toml -o x.abu --key a.pem --level 23",
        "bundle create spec/spec.toml -o x.abu --key a.pub",
        "bundle sign missing.abu --key a.pem",
        "bundle extract missing.abu -o d",
        "bundle",
        "info missing.abu",
        "info spec/spec.toml --keyring missing.abk",
    ],
)
def test_wrong_use_ends_with_2_and_changes_nothing(run: Run, words: str) -> None:
    before = sorted(str(path) for path in Path().rglob("*"))
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert err.strip()
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_damage_ends_with_3(run: Run) -> None:
    ring(run)
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem", "--key", "b.pem")[0] == 0
    good = Path("out.abu").read_bytes()
    for position in (0, 20, 120, 400, len(good) - 1):
        Path("bad.abu").write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        code, _out, err = run("bundle", "extract", "bad.abu", "-o", "d", "--keyring", "ring.abk")
        assert code == 3, position
        assert len(err.splitlines()) == 1
    for length in (0, 5, 100, 500, len(good) - 1):
        Path("bad.abu").write_bytes(good[:length])
        for words in (("info", "bad.abu"), ("bundle", "sign", "bad.abu", "--key", "s.pem"), ("bundle", "extract", "bad.abu", "-o", "d")):
            assert run(*words)[0] == 3, (length, words)
        assert Path("bad.abu").read_bytes() == good[:length]
    ring_bytes = Path("ring.abk").read_bytes()
    Path("ring.abk").write_bytes(ring_bytes[:100] + bytes([ring_bytes[100] ^ 1]) + ring_bytes[101:])
    assert run("info", "out.abu", "--keyring", "ring.abk")[0] == 3


def test_info_reads_a_pipe(run: Run) -> None:
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem")[0] == 0
    good = Path("out.abu").read_bytes()
    for data, code in ((good, 0), (good[:300], 1), (b"", 1), (b"no bundle" + good, 3)):
        done = subprocess.run([sys.executable, "-m", "abupdate", "--json", "info", "-"], input=data, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert isinstance(json.loads(done.stdout), dict)


def test_info_asks_the_devices_keyring_and_only_reports(run: Run, tmp_path: Path) -> None:
    ring(run)
    config = device_config(tmp_path)
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem")[0] == 0
    shown = document(run("-c", str(config), "--json", "info", "out.abu"))
    assert (shown["accepted"], shown["role"]) == (False, None)
    assert run("-q", "bundle", "sign", "out.abu", "--key", "b.pem")[0] == 0
    shown = document(run("-c", str(config), "--json", "info", "out.abu"))
    assert (shown["accepted"], shown["role"]) == (True, "release")
    # A device that has no right keyring accepts nothing, and still shows what the bundle is.
    Path("ring.abk").write_bytes(b"damaged")
    shown = document(run("-c", str(config), "--json", "info", "out.abu"))
    assert (shown["accepted"], shown["version"]) == (False, "1.0")
    Path("ring.abk").unlink()
    assert run("-c", str(config), "info", "out.abu")[0] == 2


def test_test_keys_of_the_devices_keyring(run: Run, tmp_path: Path) -> None:
    assert run("keys", "generate", "t", "--test")[0] == 0
    words = ["--version", "1", "--root", "r.pub", "--release", "t.pub", "--sign", "r.pem"]
    assert "(test key)" in run("keys", "keyring", "-o", "ring.abk", *words)[1]
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "t.pem")[0] == 0
    config = device_config(tmp_path)
    shown = document(run("-c", str(config), "--json", "info", "out.abu"))
    assert (shown["accepted"], "test key" in shown["reason"]) == (False, True)
    with config.open("a") as file:
        file.write("allow_test_keys = true\n")
    assert document(run("-c", str(config), "--json", "info", "out.abu"))["accepted"]


def test_info_imports_nothing_of_the_host_and_no_construct(run: Run) -> None:
    assert run("bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem")[0] == 0
    script = (
        "import sys; from abupdate.__main__ import main; code = main(['-q', 'info', 'out.abu']); "
        "heavy = ('abupdate.host', 'construct', 'asyncio', 'zstandard'); "
        "print(code, [name for name in sys.modules if name.startswith(heavy)], file=sys.stderr)"
    )
    # Measuring loads modules of its own, and may say something.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_info_of_a_bundle_that_nobody_signed_or_that_carries_no_chain_of_keyrings(run: Run) -> None:
    """Looking needs no trust: what is in it is shown, and that no device would take it."""
    ring(run, "1")
    assert run("-q", "bundle", "create", "spec/spec.toml", "-o", "out.abu", "--key", "a.pem")[0] == 0
    data = Path("out.abu").read_bytes()
    with Path("out.abu").open("rb") as file:
        signed = bundle.read_signed(file.read, len(data))
    lengths = (signed.header.tables_bytes, signed.header.payload_bytes)
    Path("unsigned.abu").write_bytes(bundle.build_head(signed.manifest_bytes, b"", *lengths) + data[len(signed.raw) :])
    for words, code in ((("--json", "info", "unsigned.abu"), 0), (("--json", "info", "unsigned.abu", "--keyring", "ring.abk"), 3)):
        shown = document(run(*words), code)
        assert (shown["version"], shown["signatures"], shown.get("accepted", False)) == ("1.0", [], False)
    assert "not signed" in run("info", "unsigned.abu")[1]
    assert document(run("--json", "bundle", "sign", "unsigned.abu", "--key", "a.pem"))["chain"] == []
    assert document(run("--json", "info", "unsigned.abu", "--keyring", "ring.abk"))["accepted"]
    block = signed.raw[96 + len(signed.manifest_bytes) :]
    Path("odd.abu").write_bytes(bundle.build_head(signed.manifest_bytes, block, *lengths, b"no chain") + data[len(signed.raw) :])
    for line in ("info odd.abu", "info odd.abu --keyring ring.abk", "bundle extract odd.abu -o d --keyring ring.abk"):
        assert run(*line.split())[0] == 3
    assert run("bundle", "sign", "odd.abu", "--key", "b.pem")[0] == 3
