"""What takes long says how far it is: on a terminal as a bar, elsewhere in a line."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cal_pipeline.inspect import cli, progress
from inspect_data import Directories

FLAGS = {
    "summary": [],
    "tokens": ["--tokenizer", "{model}"],
    "plot": ["--output", "{out}/a.png"],
    "show": ["id-0", "--tokenizer", "{model}"],
    "filter": ["tokens > 3"],
    "compare": ["{normal}"],
    "export": ["--to", "labelling-sheet", "--output", "{out}/sheet"],
    "page": ["--tokenizer", "{model}", "--output", "{out}/a.html"],
}
AT_ONCE = (
    "import sys; from cal_pipeline.inspect import cli, progress; progress.SHOW_AFTER_S = 0; "
    "sys.exit(cli.run(sys.argv[1:]))"
)


def command(name: str, directories: Directories, folder: Path, given: Sequence[str] | None = None) -> list[str]:
    places = {"model": directories.family.directory, "normal": directories.normal, "out": folder}
    flags = [part.format(**places) for part in (FLAGS[name] if given is None else given)]
    return [name, str(directories.normal), *flags]


SAYS = {
    "filter --layout": ["filter", "tokens > 3", "--layout", "messages", "--output", "{out}/rows"],
    "filter --output": ["filter", "tokens > 3", "--output", "{out}/rows"],
    "audit": ["audit", "--model_name_or_path", "{model}", "--fraction", "1", "--swap", "2", "--device", "cpu"],
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("filter --layout", ["rows read", "rows written"]),
        ("filter --output", ["rows read", "rows copied"]),
        pytest.param("audit", ["rows measured", "samples measured"], marks=pytest.mark.full),
    ],
)
def test_what_is_read_written_and_measured_is_counted_on_standard_error(
    name: str, said: list[str], directories: Directories, tmp_path: Path
) -> None:
    argv = command(SAYS[name][0], directories, tmp_path, SAYS[name][1:])
    done = subprocess.run([sys.executable, "-c", AT_ONCE, *argv], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    for what in said:
        assert f"INFO {what}: " in done.stderr
        assert what not in done.stdout


@pytest.mark.parametrize("name", FLAGS)
def test_a_pass_that_takes_long_says_so(
    name: str, directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert name in cli.SUBCOMMANDS
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0)
    caplog.set_level(logging.INFO)
    assert cli.run(command(name, directories, tmp_path)) == 0
    assert "rows read: 10 of 24, " in caplog.text
    assert "rows read" not in capfd.readouterr().out


def test_a_terminal_shows_a_bar(directories: Directories, tmp_path: Path) -> None:
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", AT_ONCE, *command("summary", directories, tmp_path)],
                          stdout=subprocess.PIPE, stderr=writer, env=environment)  # fmt: skip
    os.close(writer)
    shown = b""
    while part := _read(reader):
        shown += part
    assert done.returncode == 0
    assert b"rows read" in shown
    assert b"24/24" in shown


def _read(file: int) -> bytes:
    try:
        return os.read(file, 65536)
    except OSError:
        return b""
