"""Runs arms of the study through the public commands; what results/ already holds is not run again.

    python studies/run.py noise reference --world shapes
    python studies/run.py quick --results_dir quick

Interrupted, it goes on where it was. Two processes, one thread each; measurements share one small Ray.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

if __name__ == "__main__":  # and not where it is imported: the environment is the whole process's
    # Before torch is loaded, in the processes too: one thread each, so that numbers do not depend on the machine's.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    # Its Ray lets in only who has its token; nothing is fetched from the hub.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"RAY_worker_niceness": "0"}  # else whatever else runs on the machine starves the measurements

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples" / "shapes"))  # its processes inherit it

import arm
import results
from condition import WORLDS, Measurement, Run, WorldName
from results import Table
from unit import Unit, work_in_process

SCRATCH = Path(__file__).resolve().parent / "scratch"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", choices=arm.ARMS)
    parser.add_argument("--world", choices=WORLDS, action="append", help="default: both")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="of the arms' conditions: those of these labels")
    parser.add_argument("--seeds", type=int, help="paired seeds; default: the arm's own number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results_dir", type=Path, default=results.RESULTS)
    parser.add_argument("--scratch_dir", type=Path, default=SCRATCH, help="models and shards, reused")
    parser.add_argument("--dry_run", action="store_true", help="count what is missing")
    flags = parser.parse_args()
    if unknown := set(flags.only or ()) - {label for name in flags.arms for label in arm.load(name).labels}:
        parser.error(f"--only {', '.join(sorted(unknown))}: no condition of {', '.join(flags.arms)} is called so")
    runs, measurements = results.runs(flags.results_dir), results.measurements(flags.results_dir)
    units = missing(
        flags.arms, flags.world or WORLDS, flags.seeds, runs.keys() | measurements.keys(),
        flags.scratch_dir.resolve(), only=flags.only,
    )  # fmt: skip
    total = sum(len(unit.todo) for unit in units)
    print(f"{', '.join(flags.arms)}: {total} runs and measurements are missing", flush=True)
    if flags.dry_run or not total:
        return 0
    try:
        with alone(flags.scratch_dir), small_ray(units, flags.processes) as address:
            # Its processes and Ray end with it; after Ray's start, which sets a handler that would not.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            units = [dataclasses.replace(unit, ray_address=address) for unit in units]
            failed = record(in_processes(units, flags.processes), total, runs, measurements)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1 if failed else 0


def record(found: Iterator[object], total: int, runs: Table, measurements: Table) -> int:
    """Appends every result to its table as it comes; returns how many units failed."""
    began, failed = time.monotonic(), 0
    for number, one in enumerate(found, start=1):
        if isinstance(one, str):
            print(one, file=sys.stderr, flush=True)
            failed += 1
            continue
        item, scores = one  # type: ignore[misc]
        (runs if isinstance(item, Run) else measurements).add(item, scores)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if isinstance(value, float))
        print(f"[{time.monotonic() - began:5.0f} s, {number}/{total}] {describe(item)}: {told}", flush=True)
    return failed


def missing(
    arms: Sequence[str],
    worlds: Sequence[WorldName],
    seeds: int | None,
    done: set[str],
    scratch: Path,
    *,
    only: Sequence[str] | None = None,
) -> list[Unit]:
    """One unit for each world and seed that lacks something, lower seeds first."""
    units = []
    chosen = [arm.load(name) for name in arms]
    for seed in range(max(seeds or one.seeds for one in chosen)):
        for world in worlds:
            wanted: list[Run | Measurement] = []
            for one in chosen:
                if seed < (seeds or one.seeds):
                    wanted += one.runs(world, seed, only)
                    wanted += [] if only else one.measured(world, seed)
            todo = tuple({item.key: item for item in wanted if item.key not in done}.values())
            if todo:
                units.append(Unit(world=world, seed=seed, todo=todo, scratch=scratch))
    return units


def describe(item: Run | Measurement) -> str:
    """What differs from the defaults."""
    told = [
        str(getattr(item, field.name))
        if field.default is dataclasses.MISSING or field.name in ("reference", "contrast")
        else f"{field.name}={getattr(item, field.name)}"
        for field in dataclasses.fields(item)
        if getattr(item, field.name) != field.default
    ]  # fmt: skip
    return f"{type(item).__name__.lower()} {' '.join(told)}"


@contextmanager
def alone(scratch: Path) -> Iterator[None]:
    """Two studies in one scratch folder would make the same things at once."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another study works in {scratch}: wait for it, or give another --scratch_dir") from None
        yield


@contextmanager
def small_ray(units: Sequence[Unit], num_workers: int) -> Iterator[str]:
    """Address of a Ray on the loopback, where something is to be measured: starting one takes as long as measuring."""
    if not any(isinstance(item, Measurement) or item.weights == "cached" for unit in units for item in unit.todo):
        yield ""
        return
    import ray

    from cal_pipeline.session_dir import session_dir

    with session_dir() as temporary:
        context = ray.init(
            address="local", num_cpus=num_workers, include_dashboard=False, log_to_driver=False, _temp_dir=temporary,
            _node_ip_address="127.0.0.1", object_store_memory=200 * 2**20,
        )  # fmt: skip
        try:
            yield str(context.address_info["gcs_address"])
        finally:
            ray.shutdown()


def in_processes(units: Sequence[Unit], num_processes: int) -> Iterator[object]:
    """Results of `unit.work` as they come, in no order; a failed unit is its traceback, a dead one its exit code."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    waiting, running = list(units), list[Any]()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                running.append(context.Process(target=work_in_process, args=(waiting.pop(0), queue)))
                running[-1].start()
            ended = [one for one in running if not one.is_alive()]
            with suppress(Empty):
                while True:
                    yield queue.get(timeout=0.5)
            for one in ended:
                running.remove(one)
                if one.exitcode:
                    yield f"a process of the study ended with exit code {one.exitcode}"
    finally:
        for one in running:
            one.terminate()
            one.join()


if __name__ == "__main__":
    sys.exit(main())
