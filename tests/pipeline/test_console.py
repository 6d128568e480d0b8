"""Outputs that cannot show every character, and readers that go: all three programs end by what they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text

from annotated_data import annotate
from cal_pipeline.console import open_console
from cal_pipeline.sources.planning import plan_shards
from conftest import Family
from inspected_data import conversations
from trained import command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    """Raw data and its measurement, with German and Japanese in ids, words and the name of a shard."""
    folder = tmp_path_factory.mktemp("world")
    data = conversations(folder, ["ein größeres Haus", "家"], ids=["köln-0", "東京-1"])
    rows = json.loads(data.read_text())
    rows[1]["image"] = "fehlt-ä.png"
    (folder / "日本.json").write_text(json.dumps(rows))
    shards = plan_shards([str(folder / "日本.json")], [str(folder / "images")])
    annotate(folder / "annotated", shards, llava.encoder, llava.model)
    return folder


def said(module: str, *words: object, **environment: str) -> tuple[int, str]:
    """Exit code, and standard output and error together."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode("latin-1")


@pytest.mark.parametrize("stderr", [False, True])
def test_no_color_leaves_out_every_escape_code(
    stderr: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr if stderr else sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    for value, escapes in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        console = open_console(stderr=stderr)
        assert console.is_terminal == escapes  # Where it is none there is no bar, either.
        console.print(Text("bold", style="bold red"))
        assert ("\x1b" in capsys.readouterr()[stderr]) == escapes


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict"])
def test_cal_inspect_escapes_what_its_output_cannot_show(folder: Path, llava: Family, encoding: str) -> None:
    def show(sample: str) -> tuple[int, str]:
        words = ("show", folder / "annotated", sample, "--tokenizer", llava.directory)
        return said("cal_pipeline.inspect.cli", *words, PYTHONIOENCODING=encoding)

    code, out = show("köln-0")
    assert code == 0, out
    assert ("k\xf6ln-0" if encoding == "latin-1:strict" else r"k\xf6ln-0") in out
    code, out = show("大阪")
    assert code == 2
    assert r"\u5927\u962a" in out
    assert "Traceback" not in out


@pytest.mark.full
def test_cal_precompute_plans_on_an_output_of_ascii(folder: Path, llava: Family, tmp_path: Path) -> None:
    code, out = said(
        "cal_pipeline.cli", "--model_name_or_path", llava.directory, "--data_path", folder / "日本.json",
        "--image_folder", folder / "images", "--output_dir", tmp_path / "out", "--dtype", "float32",
        "--gpus_per_worker", "0", "--dry_run", PYTHONIOENCODING="ascii:strict",
    )  # fmt: skip
    assert code == 0, out
    assert r"2 rows  \u65e5\u672c" in out


def test_cal_precompute_verifies_on_an_output_of_ascii(folder: Path) -> None:
    code, out = said(
        "cal_pipeline.cli", "--output_dir", folder / "annotated", "--verify", PYTHONIOENCODING="ascii:strict"
    )  # fmt: skip
    assert code == 0, out


def test_cal_train_refuses_in_one_line_on_an_output_of_ascii(tmp_path: Path, llava: Family) -> None:
    code, out = said(
        "cal_trainer.cli", "--model_name_or_path", llava.directory, "--data_path", tmp_path / "größe",
        "--output_dir", tmp_path / "out", "--use_cpu", "true", PYTHONIOENCODING="ascii:strict",
    )  # fmt: skip
    assert code == 2
    assert r"gr\xf6\xdfe" in out
    assert "Traceback" not in out


def unread(module: str, *words: object, error: bool = False) -> tuple[int, str]:
    """Exit code and standard error where nobody reads the output; nor the error, which is then empty here."""
    gone, output = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)], stdout=output,
        stderr=output if error else subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(output)
    return done.returncode, done.stderr or ""


def test_a_reader_that_goes_does_not_change_the_exit_code_of_cal_precompute(folder: Path) -> None:
    assert unread("cal_pipeline.cli", "--output_dir", folder / "annotated", "--verify") == (0, "")


def test_cal_inspect_does_what_it_was_asked_to_when_its_reader_goes(folder: Path, tmp_path: Path) -> None:
    filtering = ("filter", folder / "annotated", "tokens > 0", "--output", tmp_path / "kept")
    assert unread("cal_pipeline.inspect.cli", *filtering) == (0, "")
    assert list((tmp_path / "kept").glob("*.parquet"))


@pytest.mark.full
def test_cal_train_trains_to_its_end_when_its_reader_goes(folder: Path, llava: Family, tmp_path: Path) -> None:
    flags = (*command(llava, folder / "annotated", tmp_path / "out"), "--max_steps", 2, "--disable_tqdm", "false")
    code, _ = unread("cal_trainer.cli", *flags, "--cache_dir", tmp_path / "cache", error=True)
    assert code == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == 2
