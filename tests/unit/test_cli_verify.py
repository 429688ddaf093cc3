"""`verify`, `health` and `doctor` on a workstation set-up."""

from __future__ import annotations

import pytest

from tests.workstation import Kit, Workstation


def flip(workstation: Workstation, place: str, offset: int) -> None:
    """Change one bit of an image on its slot."""
    with workstation.places[place].open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_verify_says_what_lies_there(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    workstation.confirmed("v2", "A")
    before = workstation.snapshot()
    document = workstation.ok("--json", "verify").document
    assert {slot: part["version"] for slot, part in document["slots"].items()} == {"A": "2.0", "B": "1.0"}
    assert all(part["verified"] is True for part in document["slots"].values())
    assert workstation.ok("verify", "B").out == "slot B holds version 1.0, unchanged\n"
    assert workstation.snapshot() == before


@pytest.mark.parametrize("place", ["B.rootfs", "B.boot"])
@pytest.mark.parametrize("offset", [0, 4095, 39000])
def test_verify_of_a_modified_slot(workstation: Workstation, place: str, offset: int) -> None:
    workstation.confirmed("v1", "B")
    flip(workstation, place, offset)
    before = workstation.snapshot()
    for argv in (("verify",), ("verify", "B")):
        done = workstation.run(*argv)
        assert done.code == 1
        assert "slot B" in done.err
        assert "modified since flash" in done.err
    assert workstation.snapshot() == before


def test_verify_looks_at_all_of_the_image_and_nothing_behind_it(workstation: Workstation, kit: Kit) -> None:
    workstation.confirmed("v1", "B")
    size = len(kit.images["v1"]["rootfs"])
    flip(workstation, "B.rootfs", size)
    workstation.ok("verify", "B")
    flip(workstation, "B.rootfs", size - 1)
    assert workstation.run("verify", "B").code == 1


def test_verify_of_a_slot_that_nobody_flashed(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    assert workstation.run("verify", "A").code == 4
    (workstation.state / "head.B").unlink()
    assert workstation.run("verify", "B").code == 4
    assert workstation.run("verify").code == 4


def test_verify_of_a_half_written_slot(workstation: Workstation, kit: Kit) -> None:
    data = kit["v1"].read_bytes()
    assert workstation.flash_pipe(data[: len(data) // 2]).code == 1
    assert workstation.run("verify", "B").code == 1


def test_verify_with_a_tampered_head(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    head = workstation.state / "head.B"
    data = bytearray(head.read_bytes())
    data[-1] ^= 1
    head.write_bytes(data)
    assert workstation.run("verify", "B").code in (3, 4)


def program(workstation: Workstation, name: str, text: str) -> None:
    """A health program."""
    folder = workstation.folder / "health.d"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("status", "word", "code"), [(0, "ok", 0), (1, "degraded", 1), (2, "critical", 1), (7, "critical", 1)])
def test_health(workstation: Workstation, status: int, word: str, code: int) -> None:
    program(workstation, "one", f"echo the reason; exit {status}")
    program(workstation, "two", "exit 0")
    done = workstation.run("--json", "health")
    assert done.code == code
    document = done.document
    assert document["health"] == word
    assert [(row["name"], row["health"]) for row in document["programs"]] == [("one", word), ("two", "ok")]
    assert "the reason" in document["programs"][0]["reason"] or not status


def test_health_without_programs(workstation: Workstation) -> None:
    done = workstation.ok("health")
    assert "no health programs" in done.out


def test_health_refuses_a_program_that_others_can_write(workstation: Workstation) -> None:
    program(workstation, "one", "touch ran")
    (workstation.folder / "health.d" / "one").chmod(0o775)
    done = workstation.run("health")
    assert done.code == 2
    assert "chmod" in done.err
    assert not list(workstation.folder.rglob("ran"))


def topics(workstation: Workstation) -> dict[str, list[str]]:
    """What doctor finds wrong: topic -> grades other than ok."""
    done = workstation.run("--json", "doctor")
    assert done.code in (0, 1, 2), done.err
    found: dict[str, list[str]] = {}
    for row in done.document["findings"]:
        if row["grade"] != "ok":
            assert row["hint"], row
            found.setdefault(row["topic"], []).append(row["grade"])
    return found


def test_doctor_changes_nothing(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("A")
    workstation.spoil_environment(1)
    before = workstation.snapshot()
    found = topics(workstation)
    assert found["boot store"] == ["warn"], "one copy of the environment is invalid"
    assert found["situation"] == ["warn"], "a fallback that nobody has recorded"
    assert workstation.snapshot() == before


def test_doctor_fix_settles_a_fallback(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    workstation.reboot("A")
    done = workstation.run("--json", "doctor", "--fix")
    assert "fix: record: slot B fell back" in done.err
    assert "fix: boot store: take slot B out" in done.err
    assert done.document["findings"]
    assert workstation.printed()["BOOT_ORDER"] == "A"
    assert "nothing to repair" in workstation.run("doctor", "--fix").err


def test_doctor_fix_rebuilds_a_store_that_has_no_valid_copy(workstation: Workstation) -> None:
    workstation.confirmed("v1", "B")
    workstation.spoil_environment(0, 1)
    done = workstation.run("doctor")
    assert done.code == 2
    done = workstation.run("doctor", "--fix")
    assert "fix: write the boot store anew: order B; A has 0 boots, B has 10 boots" in done.err
    printed = workstation.printed()
    assert (printed["BOOT_ORDER"], printed["BOOT_B_LEFT"], printed["BOOT_FLOOR"]) == ("B", "a", "1")
    assert workstation.slot_state("B") == "confirmed"


def test_doctor_fix_takes_out_a_trial_that_nobody_remembers(workstation: Workstation, kit: Kit) -> None:
    workstation.ok("flash", kit["v1"])
    for name in ("record.0", "record.1"):
        (workstation.state / name).unlink()
    assert workstation.status()["situation"] == "unknown"
    assert "trial of slot B is cancelled" in workstation.run("doctor", "--fix").err
    assert workstation.printed()["BOOT_ORDER"] == "A"
