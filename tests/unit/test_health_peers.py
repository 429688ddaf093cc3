"""What a member of a site sees of its peers, as part of its trial: degraded, never critical; and doubts that hold back the confirmation."""

from __future__ import annotations

from pathlib import Path

import pytest

from abupdate.errors import Refused
from abupdate.formats.peerhealth import PeerHealth, decode, encode
from abupdate.health.checks import CheckRun
from abupdate.health.monitor import Limits
from abupdate.health.peers import STALE_S, Peers
from abupdate.health.results import CheckResult, Health, Round
from abupdate.health.watch import Watch
from abupdate.model import Decision, Verdict

WINDOW_S, INTERVAL_S = 300.0, 10.0


class Site:
    """The daemon's file and a watch over it."""

    def __init__(self, folder: Path, *, programs: Programs | None = None) -> None:
        self.path = folder / "fleet-health"
        peers = Peers(self.path, grace_s=60.0)
        run = programs or CheckRun(())
        self.watch = Watch(run, Limits(WINDOW_S), INTERVAL_S, has_programs=programs is not None, peers=peers)

    def say(self, at_s: float, *, sees: bool = True, doubters: tuple[str, ...] = (), needed: int = 1) -> None:
        self.path.write_bytes(encode(PeerHealth(at_s, sees, doubters, needed)))

    def run(self, start_s: float, end_s: float, *, sees: bool | None = True, doubters: tuple[str, ...] = (), needed: int = 1) -> Decision:
        """Ticks of a second; the daemon writes in each (sees None: it is dead). The first decision that is not to wait."""
        now_s = start_s
        while True:
            if sees is not None:
                self.say(now_s, sees=sees, doubters=doubters, needed=needed)
            decision = self.watch.tick(now_s)
            if decision.verdict is not Verdict.WAIT or now_s >= end_s:
                return decision
            now_s += 1.0


class Programs(CheckRun):
    """A round of one program that always says the same, at once."""

    def __init__(self, health: Health) -> None:
        super().__init__(())
        self._round = Round((CheckResult("app", health, "said so", 0.0),))

    def poll(self, now_s: float) -> Round | None:
        return self._round if super().poll(now_s) is not None else None


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_device_that_sees_its_peers_is_confirmed_at_the_windows_end(site: Site) -> None:
    decision = site.run(20, 400)
    assert (decision.verdict, "sees its peers" in decision.reason) == (Verdict.CONFIRM, True)
    assert site.run(0, 200).verdict is Verdict.CONFIRM, "time never goes back"


@pytest.mark.parametrize("sees", [False, None])
def test_an_image_with_a_broken_network_or_without_its_daemon_reverts_long_before_the_windows_end(site: Site, sees: bool | None) -> None:
    assert site.run(20, 139, sees=sees).verdict is Verdict.WAIT
    decision = site.run(140, 400, sees=sees)
    assert decision.verdict is Verdict.REVERT
    assert "degraded for more than 60 s in a row" in decision.reason


def test_a_network_that_comes_late_or_goes_for_a_moment_is_forgiven(site: Site) -> None:
    site.run(20, 70, sees=False)
    site.run(71, 200)
    site.run(201, 240, sees=False)
    assert site.run(241, 400).verdict is Verdict.CONFIRM


def test_a_daemon_that_dies_is_noticed_by_the_age_of_its_word(site: Site) -> None:
    site.run(20, 100)
    assert site.watch.tick(100 + STALE_S).verdict is Verdict.WAIT
    assert site.run(101, 400, sees=None).verdict is Verdict.REVERT


def test_doubts_of_enough_peers_at_the_windows_end_revert_and_fewer_do_not(tmp_path: Path) -> None:
    for name, doubters, verdict in (("a", ("gw-1",), Verdict.CONFIRM), ("b", ("gw-1", "gw-2"), Verdict.REVERT)):
        folder = tmp_path / name
        folder.mkdir()
        decision = Site(folder).run(20, 400, doubters=doubters, needed=2)
        assert decision.verdict is verdict
    assert "doubted by gw-1, gw-2" in decision.reason


def test_doubts_that_have_passed_before_the_windows_end_do_not_count(site: Site) -> None:
    assert site.run(20, 250, doubters=("gw-1",)).verdict is Verdict.WAIT
    assert site.run(251, 400).verdict is Verdict.CONFIRM


def test_doubts_that_pass_soon_after_the_windows_end_only_delay_the_confirmation(site: Site) -> None:
    waits = site.run(20, 330, doubters=("gw-1",))
    assert (waits.verdict, waits.reason) == (Verdict.WAIT, "peers hold back the confirmation: doubted by gw-1")
    assert site.run(331, 400).verdict is Verdict.CONFIRM


def test_a_daemon_that_dies_while_its_doubts_are_waited_for_confirms_nothing(site: Site) -> None:
    assert site.run(20, 310, doubters=("gw-1",)).verdict is Verdict.WAIT
    decision = site.run(311, 400, sees=None)
    assert decision.verdict is Verdict.REVERT
    assert "says nothing" in decision.reason


def test_programs_and_peers_both_have_to_speak_and_the_worse_one_counts(tmp_path: Path) -> None:
    good = Site(tmp_path, programs=Programs(Health.OK))
    assert good.run(20, 400).verdict is Verdict.CONFIRM
    blind = Site(tmp_path, programs=Programs(Health.OK))
    assert blind.run(20, 400, sees=False).reason.endswith("does not see enough of its peers")
    ill = Site(tmp_path, programs=Programs(Health.CRITICAL))
    assert ill.run(20, 30, sees=False).reason == "health critical: app: said so", "at once, also before the peers' word counts"


def test_a_boot_that_took_the_whole_window_still_waits_for_the_peers_word(site: Site) -> None:
    assert site.run(310, 340, sees=False).verdict is Verdict.WAIT
    assert site.run(341, 360).verdict is Verdict.CONFIRM


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"1", b"\xff", b'{"at_s":true,"sees_quorum":true,"doubters":[],"needed":1}', b"[" * 5000]
)
def test_a_word_that_is_none_says_nothing(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Refused):
        decode(data)
    (tmp_path / "word").write_bytes(data)
    assert Peers(tmp_path / "word", grace_s=0.0).sample(1.0) == (Health.DEGRADED, "the fleet's daemon says nothing")


def test_a_word_from_another_time_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "word").write_bytes(encode(PeerHealth(500.0, True, (), 1)))
    peers = Peers(tmp_path / "word", grace_s=0.0)
    assert peers.sample(490.0) == (Health.DEGRADED, "the fleet's daemon says nothing")
    assert peers.sample(501.0) == (Health.OK, "this device sees its peers")
    assert decode(encode(PeerHealth(1.5, False, ("ä",), 3))) == PeerHealth(1.5, False, ("ä",), 3)
