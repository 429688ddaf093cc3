"""What a hand-written [bootloader] section for a foreign U-Boot script gets wrong: one line, a hint, exit 2, before anything is opened."""

from __future__ import annotations

import pytest

from abupdate.errors import ConfigError
from tests.unit.test_uboot_dialects import configured

MENDER = 'dialect = "mender"\n'
SWUPDATE = 'dialect = "swupdate"\ncopy_var = "copy"\n'


def swupdate(name: str) -> str:
    return f'dialect = "swupdate"\ncopy_var = {name}\ncopy_values = {{ A = "1", B = "2" }}'


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('dialect = "Mender"', 'bootloader.dialect = "Mender" is not known'),
        ('dialect = "barebox"', 'bootloader.dialect = "barebox" is not known'),
        ("dialect = 1", "bootloader.dialect must be a string"),
        ("partition = { A = 2, B = 3 }", "unknown key 'partition'"),
        (MENDER + "partitions = { A = 2, B = 2 }", "bootloader.partitions is the same for two slots"),
        (MENDER + "partitions = { A = 0, B = 2 }", "bootloader.partitions.A is out of range"),
        (MENDER + "partitions = { A = 2, B = 256 }", "bootloader.partitions.B is out of range"),
        (MENDER + "partitions = { A = true, B = 2 }", "bootloader.partitions.A must be a whole number"),
        (MENDER + 'partitions = { A = "2", B = 3 }', "bootloader.partitions.A must be a whole number"),
        (MENDER + "partitions = { A = 2 }", "bootloader.partitions does not name just the slots ('B')"),
        (MENDER + "partitions = { A = 2, B = 3, C = 4 }", "bootloader.partitions does not name just the slots ('C')"),
        (MENDER + "partitions = [2, 3]", "bootloader.partitions must give a value for each slot"),
        (SWUPDATE + 'copy_values = { A = "1", B = "1" }', "bootloader.copy_values is the same for two slots"),
        (SWUPDATE + "copy_values = { A = 1, B = 2 }", "bootloader.copy_values.A must be a string"),
        (SWUPDATE + 'copy_values = { A = "1", C = "2" }', "bootloader.copy_values does not name just the slots"),
        (SWUPDATE + 'copy_values = { A = "1", B = "' + "2" * 65 + '" }', "bootloader.copy_values.B has 65 characters"),
        (swupdate(f'"{"c" * 65}"'), "bootloader.copy_var has 65 characters"),
        (swupdate('["copy"]'), "bootloader.copy_var must be a string"),
        (swupdate('"bootcount"'), "copy_var = 'bootcount' means something else"),
        (swupdate('"altbootcmd"'), "copy_var = 'altbootcmd' means something else"),
        (swupdate('"BOOT_A_LEFT"'), "copy_var = 'BOOT_A_LEFT' means something else"),
        (swupdate('"a=b"'), "'a=b' is no name or value of a U-Boot variable"),
        (swupdate('"naïve"'), "is no name or value of a U-Boot variable"),
    ],
)
def test_section_that_makes_no_sense_is_refused_in_one_line_with_a_hint(section: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        configured(section)
    assert said in error.value.line
    assert "\n" not in error.value.line
    assert (error.value.exit_code, bool(error.value.hint)) == (2, True)


def test_the_hint_shows_that_no_dialect_at_all_is_one() -> None:
    with pytest.raises(ConfigError) as error:
        configured('dialect = "barebox"')
    assert error.value.hint == 'one of "", rauc, mender, swupdate'
