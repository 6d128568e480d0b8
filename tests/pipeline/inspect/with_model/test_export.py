"""What an export encodes: the same tokens as the encoder, on every core, ended with the program that started it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.with_model import export_formats
from cal_pipeline.inspect.with_model.weighted_examples import BySize
from cal_pipeline.models.loading import load_processor
from cal_schemas.errors import CalError
from examples_of import conversation
from families.processors import BUILDERS, BY_NAME
from inspect_data import Directories
from tiny_models import sample_image

QUICK = ("llava", "llava_next", "idefics3")
SIZES = ((64, 64), (90, 50), (40, 70), (91, 50))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.full]) for n in BUILDERS])
def test_text_and_tokens_do_not_depend_on_the_pixels_of_images_of_one_size(name: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path)
    encoder, twin = (Encoder(load_processor(tmp_path), template=BY_NAME[name].template) for _ in range(2))
    twin.processor.image_processor = BySize(twin.processor.image_processor)
    compared = 0
    for seed in range(3):
        for first in SIZES:
            for sizes in ((first,), (first, SIZES[seed])):
                sample = conversation("<image>\n" * len(sizes) + "What is this?", "A red cat on the table.")
                images = [sample_image(10 * seed + at, size) for at, size in enumerate(sizes)]
                try:
                    expected = encoder(sample, images)
                except CalError as error:
                    with pytest.raises(type(error)):
                        twin(sample, images)
                    continue
                found = twin(sample, images)
                assert found.sequence_inputs["input_ids"].tolist() == expected.sequence_inputs["input_ids"].tolist()
                assert found.labels.tolist() == expected.labels.tolist()
                compared += 1
    assert compared >= 12


def export(directories: Directories, output: Path, *flags: str) -> list[str]:
    return ["export", str(directories.normal), "--output", str(output), "--to", "messages-jsonl",
            "--model_name_or_path", str(directories.family.directory), *flags]  # fmt: skip


def test_several_processes_write_what_one_writes(
    directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(export_formats, "_BATCH_ROWS", 5)
    for rows, name in ((100, "one"), (1, "several")):
        monkeypatch.setattr(export_formats, "ROWS_PER_PROCESS", rows)
        assert run(export(directories, tmp_path / name)) == EXIT_DONE
    one, several = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "several")
    )
    assert one == several
    assert len(one) > 10


@pytest.mark.full
def test_what_a_process_refuses_is_said_in_one_line_and_nothing_is_left(
    directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(export_formats, "ROWS_PER_PROCESS", 1)
    command = export(directories, tmp_path / "out", "--max_image_pixels", "100")
    assert run(command) == EXIT_REFUSED
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("cal-inspect: ")
    assert "cannot be encoded now" in line
    assert not list(tmp_path.iterdir())


WAITS = """
from cal_pipeline.inspect.with_model.processes import in_order
from slow import slowly

if __name__ == "__main__":
    for number in in_order(slowly, (), range(100), 2):
        print(number, flush=True)
"""
SLOW = """
import os, time
import cal_pipeline.inspect.with_model.processes  # Once for all: workers are copied from one that has this module.

def slowly():  # Says its process, and takes long.
    return lambda _: time.sleep(0.2) or os.getpid()
"""


@contextmanager
def waiting(folder: Path) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A program that has two processes at work, and their ids."""
    (folder / "waits.py").write_text(WAITS)
    (folder / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    with subprocess.Popen(
        [sys.executable, str(folder / "waits.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        workers = {int(program.stdout.readline()) for _ in range(4)}
        assert len(workers) == 2
        yield program, workers


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_the_processes_end_with_the_one_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    with waiting(tmp_path) as (program, workers):
        program.send_signal(number)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.2)


@pytest.mark.full
def test_of_a_process_that_is_killed_from_outside_one_error_tells(tmp_path: Path) -> None:
    with waiting(tmp_path) as (program, workers):
        os.kill(workers.pop(), signal.SIGKILL)
        _, error = program.communicate(timeout=60)
    assert program.returncode == 1
    assert "ConfigError: a process that encodes rows was killed from outside" in error.splitlines()[-1]


@pytest.mark.full
def test_other_inputs_are_warned_of_once_by_several_processes_which_alone_load_torch(
    directories: Directories, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(directories.family.directory, other)
    processor = load_processor(other)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(other)
    command = [*export(directories, tmp_path / "out"), "--model_name_or_path", str(other)]
    code = (
        "import os, sys\n"
        "from cal_pipeline.inspect.cli import run\n"
        "from cal_pipeline.inspect.with_model import export_formats\n"
        "if __name__ == '__main__':\n"
        "    export_formats.ROWS_PER_PROCESS = 1\n"
        "    os.sched_getaffinity = lambda _: {0, 1}\n"
        "    assert run(sys.argv[1:]) == 0\n"
        "    assert 'torch' not in sys.modules\n"
    )
    (tmp_path / "exports.py").write_text(code)
    done = subprocess.run([sys.executable, str(tmp_path / "exports.py"), *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "other inputs" in line]
    assert line.startswith(f"WARNING --model_name_or_path {other}: other inputs than ")
