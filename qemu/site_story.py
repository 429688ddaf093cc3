"""The story that `qemu/site-demo` tells: four devices agree on an update and roll it out, one goes back, and nobody breaks the quorum."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qemu.console import ConsoleError
from qemu.device import IMAGES, TREE
from qemu.site import Site
from qemu.timeline import svg
from qemu.watch import Watch

DRAWING = TREE / ".cache/site-demo.svg"
DEVICES = 4
V2 = IMAGES / "bundles/v2.abu"


@contextmanager
def step(name: str, taken: list[tuple[str, float, bool]]) -> Iterator[None]:
    """One step: `ok NAME` when its body ends, `FAIL NAME` and no further step when it raises."""
    start = time.monotonic()
    held = False
    try:
        yield
        held = True
    finally:
        taken.append((name, time.monotonic() - start, held))
        print(f"{'ok' if held else 'FAIL'} {name} ({taken[-1][1]:.0f} s)", flush=True)


def leased(status: dict[str, Any]) -> list[str]:
    """Names of the nodes that hold a lease."""
    return [str(lease["node"]) for lease in status.get("leases", {}).get("held", [])]


def ended(status: dict[str, Any], order: str) -> dict[str, Any]:
    """How a plan ended, empty while it is open."""
    return next((one for one in status.get("closed", []) if one["order"] == order), {})


def tell(site: Site, taken: list[tuple[str, float, bool]]) -> None:
    """The whole story."""
    with step(f"{DEVICES} devices boot version 1.0.0 and are enrolled: `fleet join`, `fleet init`, `fleet join site.abm`", taken):
        site.start()
    with step("they find each other on the LAN", taken):
        site.until("all are up", lambda: all_up(site.status(0)) and all_up(site.status(DEVICES - 1)), 120)
    show(site)
    with Watch(site) as watch:
        with step("an admin proposes version 2.0.0: `fleet propose`, signed on the workstation, handed in on n0", taken):
            order = site.order(0, "propose", str(V2), "--source", "/bundles/v2.abu", "--halt-at", "2")
        with step("each device fetches it, verifies it, writes it to its slot B and approves; the first one gets a lease", taken):
            first = site.until("a lease", lambda: leased(site.any_status()), 240)
        ill = max(set(range(DEVICES)) - {int(name[1:]) for name in first})
        with step(f"one device after another goes down, boots 2.0.0 on trial and confirms it; n{ill} is ill with it and goes back", taken):
            site.make_ill(ill)
            done = site.until("the plan's end", lambda: ended(site.any_status(), order), 900)
        with step("seen from outside: three run 2.0.0, one is back on 1.0.0, and never were two of them silent at once", taken):
            if (done["completed"], done["reverted"]) != (DEVICES - 1, 1):
                raise ConsoleError(f"the plan ended otherwise: {done}")
            for node in range(DEVICES):
                last = site.boots(node)[-1]
                if last != ("A confirmed" if node == ill else "B trial"):
                    raise ConsoleError(f"n{node} last started slot {last}")
            if site.most_down(0) > 1:
                raise ConsoleError(f"more than one was silent: {site.down(0)}")
        show(site)
        print(site.fleet(0, "log").output, flush=True)
        spans, marks = watch.timeline()
    names = [f"n{number}" for number in range(DEVICES)]
    DRAWING.write_text(svg(names, spans, marks, "A rolling update of four devices, one of which goes back"))
    print(f"\ntimeline: {DRAWING}", flush=True)


def all_up(status: dict[str, Any]) -> bool:
    """Every member is heard."""
    return bool(status) and all(member["up"] for member in status["members"])


def show(site: Site) -> None:
    """What `fleet status` says on n0."""
    for line in site.fleet(0, "status").output.splitlines():
        print(f"     {line}", flush=True)


def main() -> int:
    """Tell the story; 0 when every step held."""
    start = time.monotonic()
    taken: list[tuple[str, float, bool]] = []
    with Site(DEVICES) as site:
        try:
            tell(site, taken)
        except AssertionError as error:
            print(error, file=sys.stderr)
    print("\n".join(["", *(f"  {'ok  ' if held else 'FAIL'} {seconds:6.1f} s  {name}" for name, seconds, held in taken)]))
    held = all(held for _, _, held in taken)
    print(f"\n{'every step held' if held else 'the story broke'} in {time.monotonic() - start:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
