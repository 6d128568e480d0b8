"""Mistakes of a first hour end with one line that names the thing and the way out, as docs/mistakes.md has it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import HubServer
from mistakes import HEAD, MISTAKES, PAGE, Mistake, as_on_the_page, full_disk, make_world

RUN_EACH = """
import importlib, json, os, signal, sys
programs = {name: importlib.import_module(module) for name, module in json.loads(sys.argv[1]).items()}
import cal_pipeline.runtime.execution, cal_pipeline.runtime.plan, cal_trainer.training
for number, (program, *argv) in enumerate(json.load(sys.stdin)):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    file = os.open(f"said-{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    signal.alarm(120)
    sys.argv[:] = [program, *argv]
    try:
        programs[program].main()
    except SystemExit as end:
        sys.stderr.flush()
        with open(f"end-{number}", "w") as ended:
            ended.write(str(end.code))
    os._exit(0)
"""
"""Each command line in a copy of a process that has imported all there is."""
PROGRAMS = {
    "cal-precompute": "cal_pipeline.cli",
    "cal-train": "cal_trainer.cli",
    "cal-inspect": "cal_pipeline.inspect.cli",
}
pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each was made: `said-N` holds what was printed, `end-N` the exit code."""
    folder = tmp_path_factory.mktemp("world")
    with HubServer() as hub, full_disk(folder / "full") as there_is_one:
        make_world(folder, hub)
        lines = [shlex.split(mistake.line) for mistake in MISTAKES]
        subprocess.run(
            [sys.executable, "-c", RUN_EACH, json.dumps(PROGRAMS)], input=json.dumps(lines), cwd=folder, text=True,
            env={**os.environ, **hub.environment()}, timeout=900, check=True,
        )  # fmt: skip
        if not there_is_one:
            (folder / "no_disk").touch()
    return folder


@pytest.mark.parametrize(("number", "mistake"), [*enumerate(MISTAKES)], ids=[mistake.what for mistake in MISTAKES])
def test_a_mistake_ends_with_the_line_that_the_page_has(number: int, mistake: Mistake, world: Path) -> None:
    import torch

    if mistake.line.endswith("--gpus_per_worker 1") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if mistake.line.endswith("full/out") and (world / "no_disk").exists():
        pytest.skip("mounting a disk is not permitted here")
    said = (world / f"said-{number}").read_text()
    assert (world / f"end-{number}").read_text() == "2", said
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith(f"{mistake.line.split()[0]}: ")
    row = f"| {mistake.what} | {as_on_the_page(said, world)} | "
    assert row in PAGE.read_text()


def test_the_page_has_these_mistakes_and_no_others() -> None:
    page = PAGE.read_text()
    assert page.startswith(HEAD)
    assert page.removeprefix(HEAD).count("\n") == len(MISTAKES) >= 30
