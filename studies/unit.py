"""What one process does: all that is missing of one world and seed, result by result."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from condition import Measurement, Run, WorldName

Scored = tuple[Run | Measurement, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Work of one world and seed, in the order in which it is to be done."""

    world: WorldName
    seed: int
    todo: tuple[Run | Measurement, ...]
    scratch: Path
    ray_address: str = ""


def quieten_libraries() -> None:
    """And one thread for torch."""
    import datasets
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def work(unit: Unit) -> Iterator[Scored]:
    """Does one item after the other, and yields each with its scores."""
    from encodings_kept import kept_encodings
    from workshop import Workshop

    shop = Workshop(unit.world, unit.seed, unit.scratch, unit.ray_address)
    quieten_libraries()
    with kept_encodings():
        for item in unit.todo:
            yield item, _scores_of_run(shop, item) if isinstance(item, Run) else _scores_of_measurement(shop, item)


def _scores_of_run(shop: Any, run: Run) -> dict[str, Any]:
    import scoring

    student = shop.student(run)
    scores: dict[str, Any] = dict(scoring.score_student(shop, run))
    if run.drift:
        scores["drift_log"] = scoring.drift_of(student)
    if student.name.startswith("student-"):  # the others are needed again
        shutil.rmtree(student)
    return scores


def _scores_of_measurement(shop: Any, asked: Measurement) -> dict[str, Any]:
    import scoring

    measured, models = shop.measured(asked), shop.references(asked)
    tokens = scoring.deltas_of(measured, shop.start())
    scores: dict[str, Any] = dict(scoring.judge_deltas(tokens))
    scores["swap_auc"] = shop.swap_control(asked)
    accuracies = [scoring.score_model(shop, model)["accuracy"] for model in models]
    scores["reference_accuracy"] = sum(accuracies) / len(accuracies)
    if asked.dtype != "float32":
        exact = scoring.deltas_of(shop.measured(replace(asked, dtype="float32")), shop.start())
        scores["clamp_flips"] = scoring.clamp_flips(exact, tokens)
    return scores


def work_in_process(unit: Unit, results: Connection) -> None:
    """Sends results as they come, and a failure as its traceback; interrupted, it ends with 130."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for scored in work(unit):
            results.send(scored)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception:
        results.send(traceback.format_exc())


def _end_with_parent() -> None:
    """A runner that was killed lets go of its folders: nobody may work in them any longer."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
