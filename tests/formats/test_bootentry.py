"""Boot entries: what is written is read again, others' entries as systemd-boot reads them; what changes stays in the first sector."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abupdate.errors import ConfigError
from abupdate.formats.bootentry import FIRST_KEY, NO_KEY, SECTOR_BYTES, Entry, EntryName, decode, encode, is_whole, parse_name

WORD = st.text("abcdefghijklmnopqrstuvwxyz=/,.-0123456789", min_size=1, max_size=12).filter(
    lambda word: not word.startswith(("panic", "abu"))
)
ENTRIES = st.builds(
    Entry,
    slot=st.sampled_from(("A", "B")),
    key=st.integers(0, FIRST_KEY),
    on=st.booleans(),
    kernel=st.just("/abu/B/vmlinuz"),
    initrd=st.sampled_from(("", "/abu/B/initrd")),
    unified=st.booleans(),
    trial_s=st.none() | st.integers(0, 3600),
    verity=st.sampled_from(("", "5a" * 32)),
    floor=st.none() | st.integers(0, 2**63 - 1),
    cmdline=st.lists(WORD, max_size=200).map(" ".join),
)


@given(ENTRIES)
def test_what_is_written_is_read_again(entry: Entry) -> None:
    data = encode(entry)
    assert decode(entry.slot, data) == entry
    assert is_whole(entry, data)
    assert len(data) % SECTOR_BYTES == 0


@given(ENTRIES, ENTRIES)
def test_everything_but_the_slots_own_arguments_lies_in_the_first_sector(one: Entry, other: Entry) -> None:
    first, second = encode(replace(one, cmdline="ro")), encode(replace(other, cmdline="ro"))
    assert first[SECTOR_BYTES:] == second[SECTOR_BYTES:]
    assert decode(other.slot, second[:SECTOR_BYTES] + first[SECTOR_BYTES:]) == replace(other, cmdline="ro")


@given(st.binary(max_size=2000))
def test_nothing_is_too_strange_to_be_read(data: bytes) -> None:
    entry = decode("A", data)
    assert entry.on <= bool(entry.kernel)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", Entry("A", NO_KEY, False, "")),
        ("title only\n", Entry("A", NO_KEY, False, "")),
        ("linux /k\n", Entry("A", NO_KEY, True, "/k")),
        ("linux\t/k\r\noptions a\noptions b\n", Entry("A", NO_KEY, True, "/k", cmdline="a b")),
        ("  linux   /k  \nsort-key zzz\n", Entry("A", NO_KEY, True, "/k")),
        ("#linux /k\n#options abupdate.trial=1\noptions x\n", Entry("A", NO_KEY, False, "/k", trial_s=0, cmdline="x")),
        ("linux /k\n#options abupdate.trial=1\n", Entry("A", NO_KEY, True, "/k")),
        ("linux /k\noptions abupdate.trial=1 abupdate.boot_timeout=xx\n", Entry("A", NO_KEY, True, "/k", trial_s=0)),
        ("linux /k\noptions abupdate.verity=XYZ abupdate.trial=0\n", Entry("A", NO_KEY, True, "/k")),
        ("efi /k.efi\nsort-key abu-00007\n", Entry("A", 7, True, "/k.efi", unified=True)),
        ("linux /k\n# abupdate.floor=99999999999999999999\n", Entry("A", NO_KEY, True, "/k")),
        ("linux /k\n\0linux /other\n", Entry("A", NO_KEY, True, "/k")),
    ],
)
def test_what_others_write_is_read_by_systemd_boots_rules(text: str, want: Entry) -> None:
    assert decode("A", text.encode()) == want


@pytest.mark.parametrize(
    ("file", "want"),
    [
        ("slot-A.conf", EntryName("A")),
        ("SLOT-a.CONF", EntryName("A")),
        ("slot-B+3.conf", EntryName("B", 3)),
        ("slot-B+0-12.conf", EntryName("B", 0, 12)),
        ("slot-C.conf", None),
        ("slot-A", None),
        ("slot-A+.conf", None),
        ("slot-A+3-.conf", None),
        ("slot-A+99999.conf", None),
        ("xslot-A.conf", None),
        ("slot-A.conf.bak", None),
    ],
)
def test_names(file: str, want: EntryName | None) -> None:
    assert parse_name(file, ("A", "B")) == want
    if want is not None:
        assert parse_name(want.file, ("A", "B")) == want


def test_what_does_not_fit_into_the_sector_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than the 512") as caught:
        encode(Entry("A", 1, True, "/" + "x" * 480))
    assert caught.value.hint
