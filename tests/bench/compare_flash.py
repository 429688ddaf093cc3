"""Flashes one image with RAUC and with abupdate, in turn, cold, on loop devices; prints medians, ratios and whether the aims are met."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import with_abupdate, with_rauc, workload
from tests.bench.measure import Sample, cold, median, spread, timed

LEVEL = 15
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Returns 0 where both aims are met, 1 where not."""
    options = _options()
    if os.geteuid() != 0:
        print("this benchmark needs root: it uses loop devices and mounts", file=sys.stderr)
        return 2
    print(with_rauc.install_rauc())
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    image, filler = workload.build_image(folder), workload.build_filler(folder)
    rauc_bundle = with_rauc.build_bundle(folder, image, LEVEL)
    our_bundle = with_abupdate.build_bundle(folder, image, LEVEL)
    sealed = with_abupdate.build_sealed(folder)
    print(f"image {image.stat().st_size >> 20} MiB; bundles: rauc {_mib(rauc_bundle)}, abupdate {_mib(our_bundle)}, zstd level {LEVEL}")
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.1f} (what else runs spoils the figures)")
    with ExitStack() as stack:
        slots = stack.enter_context(_slots(folder, buffered=options.loop_buffered))
        rauc, ours = with_rauc.Rauc(folder, rauc_bundle, slots), with_abupdate.Abupdate(folder, slots)
        target = slots[1]
        contenders: dict[str, Callable[[], Sample]] = {
            "rauc": rauc.flash,
            "abupdate, no read-back": lambda: ours.flash(our_bundle, read_back=False),
            "abupdate": lambda: ours.flash(our_bundle, read_back=True),
            "abupdate, sealed": lambda: ours.flash(sealed, read_back=True),
            "dd write": lambda: timed(_dd(image, target)),
        }
        samples: dict[str, list[Sample]] = {name: [] for name in [*contenders, "dd read"]}
        for number in range(options.runs):
            for name, run in contenders.items():
                subprocess.run(
                    ["dd", f"if={filler}", f"of={target}", "bs=1M", "oflag=direct", "conv=fsync"], check=True, capture_output=True
                )
                cold()
                samples[name].append(run())
                print(f"run {number + 1}: {name}: {samples[name][-1].wall_s:.2f} s", file=sys.stderr, flush=True)
                _compare(image, target, name)
            cold()
            samples["dd read"].append(timed(["dd", f"if={target}", "of=/dev/null", "bs=1M", "iflag=direct"]))
    return _report(samples)


def _report(samples: dict[str, list[Sample]]) -> int:
    base = median(samples["rauc"]).wall_s
    print(f"\n{'':24}{'wall s':>8}{'(range)':>12}{'cpu s':>8}{'peak MiB':>10}{'x rauc':>8}")
    for name, runs in samples.items():
        middle = median(runs)
        figures = f"{middle.wall_s:8.2f}{spread(runs):>12}{middle.cpu_s:8.2f}{middle.peak_bytes / 2**20:10.1f}"
        print(f"{name:24}{figures}{middle.wall_s / base:8.2f}")
    read = median(samples["dd read"]).wall_s
    bare, full = median(samples["abupdate, no read-back"]).wall_s, median(samples["abupdate"]).wall_s
    print(f"sealed: {median(samples['abupdate, sealed']).wall_s / full:.2f} of abupdate's wall time")
    met = (bare <= base, full <= base + read)
    print(f"\n{_word(met[0])} without read-back {bare:.2f} s, aim {base:.2f} s (RAUC)")
    print(f"{_word(met[1])} with read-back {full:.2f} s, aim {base + read:.2f} s (RAUC and one direct read of the slot)")
    return 0 if all(met) else 1


def _word(met: bool) -> str:
    return "ok  " if met else "MISS"


def _dd(source: Path, target: Path) -> list[str]:
    return ["dd", f"if={source}", f"of={target}", "bs=1M", "oflag=direct", "conv=fsync"]


def _compare(image: Path, target: Path, name: str) -> None:
    """A flash that is fast and wrong counts for nothing."""
    if subprocess.run(["cmp", "-s", image, target], check=False).returncode != 0:
        raise RuntimeError(f"after {name} the slot does not hold the image")


@contextmanager
def _slots(folder: Path, *, buffered: bool) -> Iterator[tuple[Path, Path]]:
    """Two loop devices. With direct I/O to their files, as a disk would do, unless asked otherwise: no second page cache below them."""
    with ExitStack() as stack:
        devices = []
        for name in ("slot-a.img", "slot-b.img"):
            file = folder / name
            with file.open("wb") as out:
                os.posix_fallocate(out.fileno(), 0, workload.IMAGE_BYTES)
            command = ["losetup", "--find", "--show", f"--direct-io={'off' if buffered else 'on'}", str(file)]
            device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
            stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
            devices.append(Path(device))
        yield devices[0], devices[1]


def _mib(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.1f} MiB"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/flash", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench", help="where image, bundles and slots are kept (2.5 GiB)")
    parser.add_argument("--loop-buffered", action="store_true", help="loop devices that go through the page cache of their files")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
