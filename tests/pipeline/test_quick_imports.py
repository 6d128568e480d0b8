"""Programs and workers import torch with the garbage collector at rest, which never looks through those imports."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cal_pipeline import cli
from cal_pipeline.quick_imports import quick_imports
from cal_pipeline.runtime import ray_driver
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.signals import Interruption
from cal_trainer import cli as train_cli


class Circle:
    """Refers to itself: only a collection frees it."""

    freed = 0

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        Circle.freed += 1


def failing_import() -> None:
    """Leaves garbage behind."""
    assert Circle.freed == 1  # It was garbage before, and is no module.
    assert not gc.isenabled()
    Circle()
    raise ImportError


def test_nothing_is_collected_while_torch_is_imported_and_what_is_there_by_then_never_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(Circle, "freed", 0)
    Circle()
    try:
        with pytest.raises(ImportError), quick_imports():
            failing_import()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 1000
        gc.collect()
        assert Circle.freed == 1
    finally:
        gc.unfreeze()
        gc.collect()
    assert Circle.freed == 2


def test_what_a_notebook_holds_is_freed_once_it_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(Circle, "freed", 0)
    held = Circle()
    with quick_imports(freeze=False):
        assert not gc.isenabled()
    assert gc.isenabled()
    del held
    gc.collect()
    assert Circle.freed == 1


def test_a_process_that_has_torch_already_or_does_not_collect_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with quick_imports():
        assert gc.isenabled()
    monkeypatch.delitem(sys.modules, "torch")
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


class EnteredError(Exception):
    """Whoever is about to import torch gets here first."""


def enter(*, freeze: bool = True) -> None:
    raise EnteredError


def test_programs_and_workers_import_it_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (cli, train_cli, ray_driver):
        monkeypatch.setattr(module, "quick_imports", enter)
    monkeypatch.setattr(cli, "validate_paths", lambda _: [])
    config = PrecomputeConfig(model_name_or_path="model", data_path=["data.json"], output_dir=str(tmp_path))
    with pytest.raises(EnteredError), Interruption() as interruption:
        cli.measure(config, interruption)
    monkeypatch.setattr(train_cli, "_answer_early", lambda _: SimpleNamespace(log_format="text", assemble=[]))
    with pytest.raises(EnteredError):
        train_cli.run([])
    with pytest.raises(EnteredError):
        ray_driver._Actor.__ray_actor_class__(str(tmp_path / "log"))
