"""Runs units of the study in processes of their own, which share one small Ray and end before the runner does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from condition import Measurement, Scored, Unit


@contextmanager
def small_ray(units: Sequence[Unit], num_workers: int) -> Iterator[str]:
    """Address of a Ray on the loopback, where something is to be measured: starting one takes as long as measuring."""
    if not any(isinstance(item, Measurement) or item.weights == "cached" for unit in units for item in unit.todo):
        yield ""
        return
    import ray

    from cal_pipeline.runtime.session_dir import session_dir

    with session_dir() as temporary:
        context = ray.init(
            address="local", num_cpus=num_workers, include_dashboard=False, log_to_driver=False, _temp_dir=temporary,
            _node_ip_address="127.0.0.1", object_store_memory=200 * 2**20,
        )  # fmt: skip
        try:
            yield str(context.address_info["gcs_address"])
        finally:
            ray.shutdown()


def in_processes(units: Sequence[Unit], num_processes: int) -> Generator[Scored | str, None, None]:
    """Results of `scoring.work` as they come, in no order; a failed unit is its traceback, a dead one its exit code."""
    context = multiprocessing.get_context("spawn")
    waiting, running = list(units), dict[Connection, SpawnProcess]()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                ours, theirs = context.Pipe(duplex=False)  # one each: a process that is killed spoils no other's
                process = context.Process(target=work_in_process, args=(waiting.pop(0), theirs))
                process.start()
                theirs.close()
                running[ours] = process
            ready = wait(list(running))
            for ours in [one for one in running if one in ready]:
                try:
                    yield ours.recv()
                except (EOFError, OSError):  # its end is closed, perhaps within a result
                    process = running.pop(ours)
                    process.join()
                    if process.exitcode:
                        yield f"a process of the study ended with exit code {process.exitcode}"
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def work_in_process(unit: Unit, results: Connection) -> None:
    """Sends results as they come, and a failure as its traceback; interrupted, it ends with 130."""
    threading.Thread(target=_end_with_runner, daemon=True).start()
    try:
        import scoring  # torch is loaded here only, not in the runner

        for scored in scoring.work(unit):
            results.send(scored)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception:
        results.send(traceback.format_exc())


def _end_with_runner() -> None:
    """A runner that was killed lets go of its folders: nobody may work in them any longer."""
    runner = multiprocessing.parent_process()
    assert runner is not None
    runner.join()
    os._exit(1)
