"""Runs arms of the study through the public commands; what results/ already holds is not run again.

    python studies/run.py noise reference --world shapes
    python studies/run.py quick --results_dir quick

Interrupted, it goes on where it was. Two processes, one thread each; measurements share one small Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

if __name__ == "__main__":  # and not where it is imported: the environment is the whole process's
    # Before torch is loaded, in the processes too: one thread each, so that numbers do not depend on the machine's.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    # Its Ray lets in only who has its token; nothing is fetched from the hub.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"RAY_worker_niceness": "0"}  # else whatever else runs on the machine starves the measurements

import folders
import results
from arms import ARMS
from condition import MAX_SEEDS, WORLDS, Measurement, Run, Scored, Unit, WorldName, describe
from processes import in_processes, small_ray
from results import RecordError, Table

sys.path.append(str(results.SHAPES))  # its processes inherit it

SCRATCH = Path(__file__).resolve().parent / "scratch"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", choices=ARMS)
    parser.add_argument("--world", choices=WORLDS, action="append", help="default: the arm's own")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the arms' conditions: those of these labels")
    parser.add_argument("--seeds", type=int, help=f"paired seeds, 1 to {MAX_SEEDS}; default: the arm's own")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results_dir", type=Path, default=results.RESULTS)
    parser.add_argument("--scratch_dir", type=Path, default=SCRATCH, help="models and shards, reused")
    parser.add_argument("--dry_run", action="store_true", help="count what is missing")
    flags = parser.parse_args()
    if unknown := set(flags.only or ()) - {label for name in flags.arms for label in ARMS[name].labels}:
        parser.error(f"--only {', '.join(sorted(unknown))}: no condition of {', '.join(flags.arms)} is called so")
    if flags.seeds is not None and not 1 <= flags.seeds <= MAX_SEEDS:
        parser.error(f"--seeds {flags.seeds}: 1 to {MAX_SEEDS}, which is MAX_SEEDS (studies/condition.py)")
    if flags.processes < 1:
        parser.error(f"--processes {flags.processes}: at least 1")
    try:
        if flags.dry_run:
            todo(flags)
            return 0
        with folders.alone(flags.results_dir, "results_dir"), folders.alone(flags.scratch_dir, "scratch_dir"):
            return complete(flags)
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT


def todo(flags: argparse.Namespace) -> list[Unit]:
    """What the record lacks."""
    done = results.runs(flags.results_dir).keys() | results.measurements(flags.results_dir).keys()
    scratch = flags.scratch_dir.resolve()
    units = missing(flags.arms, flags.world, flags.seeds, done, scratch, only=flags.only)
    total = sum(len(unit.todo) for unit in units)
    print(f"{', '.join(flags.arms)}: {total} runs and measurements are missing", flush=True)
    return units


def complete(flags: argparse.Namespace) -> int:
    """Does what is missing; returns the exit code, which is 1 where something still is. Both folders are its own."""
    runs, measurements = results.runs(flags.results_dir), results.measurements(flags.results_dir)
    results.versions()  # of the code that is imported now, whatever is edited while it works
    runs.repair()
    measurements.repair()
    folders.remove_unfinished(flags.scratch_dir)
    units = todo(flags)
    if not units:
        return 0
    if any(unit.world == "emoji" for unit in units):
        import emojis

        try:
            emojis.emoji()
        except emojis.PackagesError as error:  # said here, not by each process
            print(error, file=sys.stderr)
            return 2
    with small_ray(units, flags.processes) as address:
        # Its processes and Ray end with it; after Ray's start, which sets a handler that would not.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        units = [dataclasses.replace(unit, ray_address=address) for unit in units]
        with closing(in_processes(units, flags.processes)) as outcomes:  # they end before Ray and the locks do
            left = record(outcomes, units, runs, measurements)
    if left:
        first = "; ".join(describe(item) for item in left[:3])
        print(f"{len(left)} are still missing ({first}{', ...' if left[3:] else ''}); the same command goes on",
              file=sys.stderr)  # fmt: skip
    return 1 if left else 0


def record(
    outcomes: Iterable[Scored | str], units: Sequence[Unit], runs: Table[Run], measurements: Table[Measurement]
) -> list[Run | Measurement]:
    """Appends every result to its table as it comes, and says what failed; returns what was asked for and never came.

    A unit may end early without a word, as a signal ends a command: only what came counts.
    """
    began = time.monotonic()
    left = {item.key: item for unit in units for item in unit.todo}
    total = len(left)
    for outcome in outcomes:
        if isinstance(outcome, str):
            print(outcome, file=sys.stderr, flush=True)
            continue
        item, scores = outcome
        if isinstance(item, Run):
            runs.add(item, scores)
        else:
            measurements.add(item, scores)
        del left[item.key]
        values = ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if isinstance(value, float))
        print(
            f"[{time.monotonic() - began:5.0f} s, {total - len(left)}/{total}] {describe(item)}: {values}", flush=True
        )
    return list(left.values())


def missing(
    arms: Sequence[str],
    worlds: Sequence[WorldName] | None,
    seeds: int | None,
    done: set[str],
    scratch: Path,
    *,
    only: Sequence[str] | None = None,
) -> list[Unit]:
    """One unit for each world and seed that lacks something, lower seeds first; without `worlds` of each arm's own."""
    units = []
    chosen = [ARMS[name] for name in arms]
    for seed in range(max(seeds or one.seeds for one in chosen)):
        for world in WORLDS:
            wanted: list[Run | Measurement] = []
            for one in chosen:
                if world in (worlds or one.worlds) and seed < (seeds or one.seeds):
                    wanted += one.runs(world, seed, only)
                    wanted += [] if only else one.measured(world, seed)
            todo = tuple({item.key: item for item in wanted if item.key not in done}.values())
            if todo:
                units.append(Unit(world=world, seed=seed, todo=todo, scratch=scratch))
    return units


if __name__ == "__main__":
    sys.exit(main())
