"""autoboot.txt: what the firmware would do with it, and what abupdate leaves of it."""

from __future__ import annotations

import pytest

from abupdate.errors import ConfigError, StoreUnreadable
from abupdate.formats.autoboot import Autoboot, changed, encode, parse

DOCUMENTED = b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"


def both(data: bytes) -> tuple[int | None, int | None]:
    """What boots without and with the flag."""
    found = parse(data)
    return found.partition(tryboot=False), found.partition(tryboot=True)


@pytest.mark.parametrize(
    ("data", "normal", "tried"),
    [
        (DOCUMENTED, 2, 3),
        (b"boot_partition=2", 2, 2),
        (b"", None, None),
        (b"[tryboot]\nboot_partition=3\n", None, 3),
        (b"boot_partition=2\nboot_partition=4\n", 4, 4),
        (b"[tryboot]\nboot_partition=3\n[all]\nboot_partition=2\n", 2, 2),
        (b"[none]\nboot_partition=5\n[all]\nboot_partition=2\n", 2, 2),
        (b"[none]\n[tryboot]\nboot_partition=5\n[all]\nboot_partition=2\n", 2, 2),
        (b"boot_partition=2\n[pi4]\nboot_partition=5\n", 2, 2),
        (b"#boot_partition=5\nboot_partition=2 # the first\r\n", 2, 2),
        (b" boot_partition = 2\n", 2, 2),
        (b"boot_partition=two\n", None, None),
        (b"boot_partition=\n", None, None),
        (b"boot_partition=9999\n", None, None),
        (b"xboot_partition=5\nboot_partition\n", None, None),
    ],
)
def test_filters_and_values_are_read_as_the_firmware_reads_them(data: bytes, normal: int | None, tried: int | None) -> None:
    assert both(data) == (normal, tried)


def test_the_flag_switches_partitions_only_where_the_file_says_so_for_a_try() -> None:
    assert parse(DOCUMENTED).switches_partitions()
    assert not parse(b"boot_partition=2\n").switches_partitions()
    assert not parse(b"tryboot_a_b=0\n").switches_partitions()
    assert parse(b"[tryboot]\ntryboot_a_b=1\n").switches_partitions()


def test_what_is_written_wins_over_whatever_stood_before_it() -> None:
    old = parse(b"uart_2ndstage=1\n[none]\nboot_partition=7\n[tryboot]\nboot_partition=8\nodd=1\n")
    new = changed(old, 2, 3, {"order": "A:1", "trial": "B:1"})
    data = encode(new)
    assert len(data) == 512
    assert both(data) == (2, 3)
    assert parse(data) == new
    assert new.notes == {"order": "A:1", "trial": "B:1"}
    assert new.foreign() == ("uart_2ndstage=1", "[none]", "[tryboot]", "odd=1")


def test_without_a_trial_no_section_is_left_for_the_flag() -> None:
    armed = changed(parse(DOCUMENTED), 2, 3, {"order": "A:1", "trial": "B:1"})
    calm = changed(armed, 2, None, {"order": "A:1"})
    assert calm.lines == ("[all]", "# abupdate order=A:1", "tryboot_a_b=1", "boot_partition=2")
    assert changed(parse(DOCUMENTED), 2, None, {}).partition(tryboot=True) == 2


def test_foreign_lines_stay_through_any_number_of_changes() -> None:
    old = parse(b"# of the board\n[tryboot]\ndelay=1\n[all]\nname=\xff\xe4\nboot_partition=4\n")
    kept = ("# of the board", "[tryboot]", "delay=1", "[all]", "name=\xff\xe4")
    new = old
    for partition, trial in ((2, 3), (3, None), (3, 2), (2, None)):
        new = parse(encode(changed(new, partition, trial, {"order": "A:1", **({"trial": "B:1"} if trial else {})})))
        assert new.foreign() == kept
        assert (new.partition(tryboot=False), new.partition(tryboot=True)) == (partition, trial or partition)


def test_notes_are_only_what_is_marked_as_ours() -> None:
    assert parse(b"# order=B:1\n# abupdate order=A:1 floor=5\n#abupdate floor=6\n").notes == {"order": "A:1", "floor": "5"}


def test_more_than_the_firmware_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 512 bytes"):
        parse(b"#" * 513)
    assert parse(b"#" * 512).lines == ("#" * 512,)
    with pytest.raises(ConfigError, match="512 are the limit") as caught:
        encode(changed(Autoboot(("#" * 480,)), 2, 3, {"order": "A:1"}))
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_zeros_at_the_end_are_a_file_that_was_cut_while_it_grew() -> None:
    assert parse(DOCUMENTED + bytes(100) + b"\n" * 100 + bytes(100)) == parse(DOCUMENTED)


def test_zeros_before_text_are_no_text() -> None:
    with pytest.raises(StoreUnreadable, match="no text"):
        parse(bytes(8) + DOCUMENTED)
