"""What cal-inspect writes appears whole under its name, or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from inspect_data import Directories

WRITTEN = {
    "plot": ["--output", "out.png"],
    "tokens": ["--tokenizer", "{model}", "--output", "out.csv"],
    "samples": ["--output", "out.parquet"],
    "show": ["#0", "--tokenizer", "{model}", "--output", "out.html"],
    "page": ["--tokenizer", "{model}", "--output", "out.html"],
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_is_full_leaves_the_file_that_was_there_and_is_said_in_one_line(
    name: str, directories: Directories, tmp_path: Path
) -> None:
    given = [part.format(model=directories.family.directory) for part in WRITTEN[name]]
    old = tmp_path / given[-1]
    old.write_bytes(b"what was there before")
    # No file may pass 40 bytes: a write fails as on a full disk.
    code = (
        "import resource, sys; from cal_pipeline.inspect.cli import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY)); sys.exit(run(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(directories.normal), *given],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_REFUSED, done.stderr
    assert f"cal-inspect: {given[-1]} cannot be written: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert old.read_bytes() == b"what was there before"
    assert list(tmp_path.iterdir()) == [old]


def test_files_beside_the_one_that_is_written_stay(directories: Directories, tmp_path: Path) -> None:
    beside = [tmp_path / name for name in ("out.new", "out.partial", "out.html.partial", ".out.html")]
    for file in beside:
        file.write_text("mine")
    model = str(directories.family.directory)
    given = ["page", str(directories.normal), "--tokenizer", model, "--output", str(tmp_path / "out.html")]
    assert run(given) == EXIT_DONE
    assert [file.read_text() for file in beside] == ["mine"] * 4
