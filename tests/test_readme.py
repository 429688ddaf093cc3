"""The README against the code: files that it names, commands that it shows, the configuration and its defaults."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from abupdate.cli.parser import build
from abupdate.config import compose
from abupdate.errors import ConfigError
from abupdate.fleetsettings import FleetSettings

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "bootloader-hooks/README.md")


def commands(text: str) -> list[str]:
    """Lines of `abupdate ...`: indented ones with what continues them, and those in a sentence that are more than a name of a verb."""
    joined = re.sub(r"\\\n\s*", "", text)
    shown = re.findall(r"^ {4,}(abupdate [^#\n]+)", joined, re.MULTILINE)
    return [line.partition(";")[0] for line in shown] + [" ".join(line.split()) for line in re.findall(r"`(abupdate [^`]+)`", joined)]


def blocks(text: str) -> list[str]:
    """Indented blocks, without their indentation."""
    return [re.sub(r"^ {4,7}", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^ {4,}\S.*\n)+", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_are_there(page: Path) -> None:
    found = re.findall(r"`(?:\./)?((?:tests|images|qemu|bootloader-hooks|abupdate)/[\w./-]*)[^`]*`", page.read_text())
    assert len(found) > (40 if page == README else 2)
    assert [name for name in found if not (ROOT / name).exists()] == []


def test_tests_that_are_named_hold_tests() -> None:
    named = set(re.findall(r"`(tests/[\w/]+/test_\w+\.py)`", README.read_text()))
    assert len(named) > 25
    assert [name for name in named if "\ndef test_" not in (ROOT / name).read_text()] == []


@pytest.mark.parametrize("line", commands(README.read_text()))
def test_commands_that_are_shown_are_taken(line: str) -> None:
    """Parsed, not run: words in capitals stand for files, three dots for more words."""
    words = [word for word in shlex.split(line.replace("`", "")) if word not in ("...", "…")]
    wrong = ""
    try:
        build().parse_args(words[1:])
    except ConfigError as error:
        wrong = error.message
    # In a sentence a verb may stand without its arguments.
    assert not wrong or "are required" in wrong


def test_the_test_sees_a_wrong_option() -> None:
    assert len(commands(README.read_text())) > 25
    with pytest.raises(ConfigError):
        build().parse_args(["flash", "--no-such-option", "x"])


def test_the_configuration_that_is_shown() -> None:
    """It is taken as it stands, and what it calls defaults are the defaults."""
    text, without_a_device = [block for block in blocks(README.read_text()) if "[slots.A]" in block]
    path = Path("/etc/abupdate/config.toml")
    assert compose([(path, without_a_device.encode())], path).device.booted == "A"
    shown = compose([(path, text.encode())], path)
    needed = text.partition("# Everything below")[0]
    bare = compose([(path, needed.encode())], path)
    assert shown == bare
    said = tomllib.loads(text)
    for name in ("trial", "watchdog", "health"):
        assert said[name].keys() == {field.name for field in fields(getattr(bare, name))}, f"a key of [{name}] is not shown"


def test_the_section_of_a_sites_member_that_is_shown() -> None:
    """Every key, with its default, but for those that have none."""
    (text,) = [block for block in blocks(README.read_text()) if block.startswith("[fleet]")]
    said = tomllib.loads(text)["fleet"]
    assert said.keys() == {field.name for field in fields(FleetSettings)}
    assert (said.pop("udp_interface"), said.pop("tpm_nv")) == ("eth0", 0x1500011)
    defaults = FleetSettings()
    for name, value in said.items():
        default = getattr(defaults, name)
        assert value == (list(default) if isinstance(default, tuple) else default if isinstance(value, int) else str(default)), name
