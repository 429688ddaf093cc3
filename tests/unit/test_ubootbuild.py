"""Where U-Boot's source comes from, and what is said where it cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from images import ubootbuild
from images.cache import Cache


def test_sources_come_from_the_machines_own_lists_in_either_form(tmp_path: Path) -> None:
    machine, private = tmp_path / "apt", tmp_path / "private"
    (machine / "sources.list.d").mkdir(parents=True)
    (machine / "sources.list").write_text("# deb mirror://x off main\ndeb [signed-by=/k] mirror://x stable main\n")
    (machine / "sources.list.d/a.sources").write_text("Types: deb\nURIs: mirror://x\nSuites: stable\nSigned-By: /k\n\nTypes: deb deb-src\n")
    (machine / "sources.list.d/b.list.off").write_text("deb mirror://y stable main\n")
    assert ubootbuild.source_lists(machine, private) == 2
    assert (private / "sources.list").read_text() == "# deb mirror://x off main\ndeb-src [signed-by=/k] mirror://x stable main\n"
    assert (private / "a.sources").read_text() == ("Types: deb-src\nURIs: mirror://x\nSuites: stable\nSigned-By: /k\n\nTypes: deb-src\n")
    assert sorted(path.name for path in private.iterdir()) == ["a.sources", "sources.list"]


def test_missing_packages_are_one_line_that_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ubootbuild.CannotBuild) as caught:
        ubootbuild.build_uboot(Cache(tmp_path / "cache"))
    line = str(caught.value)
    assert "\n" not in line
    assert "apt-get install --no-install-recommends gcc-aarch64-linux-gnu bison flex" in line
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith("uboot")]
