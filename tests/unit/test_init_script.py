"""The init scripts, run for real in namespaces of its own, with an agent and a `reboot` that write down what they are asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.workstation import ROOT

SCRIPT = ROOT / "images/debian/abupdate.init"
FLEET = ROOT / "images/debian/abupdate-fleet.init"
# /run and /proc/cmdline are the test's own; every process ends with the first one.
ENTER = """
set -e
folder=$1
shift
mount -t tmpfs tmpfs /run
mount --bind "$folder/cmdline" /proc/cmdline
cd "$folder"
export PATH="$folder:$PATH" ABUPDATE="$folder/agent"
script() { sh SCRIPT "$@"; }
until_said() {
	n=0
	until [ "$(grep -c "$1" said)" -ge "${2:-1}" ]; do
		n=$((n + 1))
		[ $n -lt 400 ] || exit 70
		sleep
	done
}
until_gone() {
	n=0
	while script status; do
		n=$((n + 1))
		[ $n -lt 400 ] || exit 71
		sleep
	done
}
"""
SLEEP = "#!/bin/sh\nexec /bin/sleep 0.02\n"
REBOOT = '#!/bin/sh\necho "reboot $*" >>said\n'
STAYS = """#!/bin/sh
echo "agent $*" >>said
trap 'echo ended >>said; exit 0' TERM
case "$*" in *--trial) TRIAL ;; esac
CONFIRMED
"""


def told(
    folder: Path, cmdline: str, story: str, *, trial: str = "exit 0", confirmed: str = "while :; do sleep; done", script: Path = SCRIPT
) -> list[str]:
    """What agent and `reboot` were asked for while the story was told; trial, confirmed: what the agent does then."""
    (folder / "cmdline").write_text(cmdline)
    (folder / "said").touch()
    for name, text in (("sleep", SLEEP), ("reboot", REBOOT), ("agent", STAYS.replace("TRIAL", trial).replace("CONFIRMED", confirmed))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        ENTER.replace("SCRIPT", str(script)) + story,
        "sh",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "said").read_text().splitlines()


TRIAL = "quiet abupdate.slot=B abupdate.trial=1 panic=10\n"


def test_a_trial_is_handed_over_when_it_is_confirmed_and_not_begun_again(tmp_path: Path) -> None:
    story = """
    script start; until_said 'agent service$'
    script start; script status
    script stop; until_said ended; until_gone
    script restart; until_said 'agent service$' 2
    script stop; until_said ended 2
    """
    assert told(tmp_path, TRIAL, story) == ["agent service --trial", "agent service", "ended", "agent service", "ended"]


@pytest.mark.parametrize("end", ["exit 1", "kill -KILL $$"])
def test_an_agent_that_dies_on_trial_reboots_and_is_not_started_again(tmp_path: Path, end: str) -> None:
    story = "script start; until_said reboot; until_gone"
    assert told(tmp_path, TRIAL, story, trial=end) == ["agent service --trial", "reboot -f"]


def test_on_a_confirmed_slot_it_is_started_as_often_as_it_dies_and_nothing_reboots(tmp_path: Path) -> None:
    story = "script start; until_said 'agent service$' 6; script stop; until_gone"
    said = told(tmp_path, "abupdate.slot=B xabupdate.trial=1 abupdate.trial=10\n", story, confirmed="exit 1")
    assert set(said) == {"agent service"}


def test_words_that_it_does_not_know(tmp_path: Path) -> None:
    assert told(tmp_path, TRIAL, "code=0; script reload || code=$?; [ $code = 2 ]") == []


def test_the_fleet_daemon_is_started_as_often_as_it_dies_and_ends_with_the_script(tmp_path: Path) -> None:
    story = "script start; until_said 'agent -v fleet daemon' 4; script start; script status; script stop; until_gone"
    assert set(told(tmp_path, "quiet\n", story, confirmed="exit 1", script=FLEET)) == {"agent -v fleet daemon"}
    (tmp_path / "said").unlink()
    story = "script start; until_said 'agent -v fleet daemon'; script stop; until_said ended; until_gone"
    assert told(tmp_path, "quiet\n", story, script=FLEET) == ["agent -v fleet daemon", "ended"]


@pytest.mark.parametrize("code", [2, 3])
def test_a_device_that_is_in_no_site_has_no_fleet_daemon(tmp_path: Path, code: int) -> None:
    story = "script start; until_said 'agent -v fleet daemon'; until_gone"
    assert told(tmp_path, "quiet\n", story, confirmed=f"exit {code}", script=FLEET) == ["agent -v fleet daemon"]
