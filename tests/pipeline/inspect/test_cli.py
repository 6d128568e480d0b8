"""Every subcommand on every kind of directory: clear output, or one clear error."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, SUBCOMMANDS, run
from inspect_data import Directories

NOTHING = "none of the"
# What follows the directory; {model}, {out} and {sample} are filled in.
COMMANDS: dict[str, list[str]] = {
    "summary": [],
    "samples": ["--output", "{out}/samples.parquet"],
    "tokens": ["--tokenizer", "{model}"],
    "plot": ["--output", "{out}/deltas.png"],
    "show": ["#0", "--tokenizer", "{model}"],
    "filter": ["tokens >= 0", "--output", "{out}/kept"],
    "compare": ["{same}"],
    "export": ["--to", "messages-jsonl", "--model_name_or_path", "{model}", "--output", "{out}/export"],
    "export hf-dataset": ["--to", "hf-dataset", "--model_name_or_path", "{model}", "--output", "{out}/export"],
    "export labelling-sheet": ["--to", "labelling-sheet", "--output", "{out}/sheet"],
    "push": ["--repo_id", "org/name", "--images", "embed", "--partial", "--dry_run", "{out}/card"],
}
REFUSED: dict[str, dict[str, str]] = {
    "empty": dict.fromkeys(COMMANDS, "no annotated shards (*.parquet) here"),
    "truncated": dict.fromkeys(COMMANDS, "not a readable Parquet file"),
    "failed": {
        "tokens": NOTHING,
        "plot": NOTHING,
        "compare": "none is ok in both",
        "export": NOTHING,
        "export hf-dataset": NOTHING,
        "export labelling-sheet": NOTHING,
    },
    "text_only": {"export labelling-sheet": "shows an image"},
    "sidecar": {name: "sidecar" for name in COMMANDS if name.startswith(("export", "push"))},
}
"""Directory -> subcommand -> part of the message; what is not named succeeds."""
SLOW = ("export hf-dataset",)
WITH_IMAGES = ("show", "filter", "export", "push")
"""To the others a directory of paths is one of embedded images."""


def cases() -> list[object]:
    return [
        pytest.param(name, kind, id=f"{name}-{kind}", marks=[pytest.mark.full] if name in SLOW else [])
        for name in COMMANDS
        for kind in ("normal", "paths", "sidecar", "empty", "failed", "text_only", "truncated")
        if kind != "paths" or name.split()[0] in WITH_IMAGES
    ]


@pytest.mark.parametrize(("name", "kind"), cases())
def test_clear_output_or_one_clear_error(
    name: str, kind: str, directories: Directories, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    annotated = directories.by_name(kind)
    filled = [part.format(model=directories.family.directory, out=tmp_path, same=annotated) for part in COMMANDS[name]]
    if name == "compare" and kind == "empty":
        filled = [str(directories.normal)]
    code = run([name.split()[0], str(annotated), *filled])
    out, err = capfd.readouterr()
    reason = REFUSED.get(kind, {}).get(name)
    if reason is None:
        assert code == EXIT_DONE, err
        assert out.strip()
        assert "Traceback" not in err
    else:
        assert code == EXIT_REFUSED, out
        lines = [line for line in err.splitlines() if line.startswith("cal-inspect: ")]
        assert len(lines) == 1, err
        assert reason in lines[0]
        assert not list(tmp_path.glob("*")), "what was refused leaves nothing behind"


def test_every_subcommand_is_in_the_table() -> None:
    own = {"agreement"}  # takes a sheet, see test_labelling.py
    assert {name.split()[0] for name in COMMANDS} | own | set(OTHER_TABLES) == set(SUBCOMMANDS)


OTHER_TABLES = ("audit", "page", "attention", "patch-words")
"""Subcommands whose tests have this table for themselves."""


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "required: SUBCOMMAND"),
        (["sumary"], "invalid choice: 'sumary'; did you mean summary?"),
        (["summary"], "required: ANNOTATED"),
        (["summary", "nowhere"], "nowhere: no such file or directory"),
        (["summary", "{normal}", "{normal}"], "is named twice"),
        (["summary", "{normal}", "--alpha", "7"], "0 <= alpha <= beta"),
        (["summary", "{normal}", "--windw", "7"], "unknown flag --windw; did you mean --window?"),
        (["summary", "{normal}", "--win", "7"], "unknown flag --win; did you mean --window?"),
        (["show", "--tokenzier", "x"], "unknown flag --tokenzier; did you mean --tokenizer?"),
        (["--vresion"], "unknown flag --vresion; did you mean --version?"),
        (["tokens", "{normal}", "--top", "0", "--tokenizer", "{model}"], "--top"),
        (["tokens", "{normal}"], "--tokenizer"),
        (["tokens", "{normal}", "--tokenizer", "{images}"], "no such tokenizer file"),
        (["plot", "{normal}", "--output", "x.jpg"], "must end in .png"),
        (["plot", "{normal}", "--output", "/proc/deltas.png"], "/proc/deltas.png cannot be written"),
        (["tokens", "{normal}", "--tokenizer", "{model}", "--output", "/proc/a.csv"], "/proc/a.csv cannot be written"),
        (["plot", "{normal}", "--by", "color"], "there are source, turn, template_inputs, status"),
        (["show", "{normal}", "nobody"], "no row has the sample_id"),
        (["show", "{normal}", "#\u00b2"], "no row has the sample_id"),
        (["show", "{normal}", "#" + "9" * 5000], "no row has the sample_id"),
        (["summary", "x" * 300], "File name too long"),
        (["plot", "{normal}", "--output", "x" * 300 + ".png"], "File name too long"),
        (["filter", "{normal}", "tokens > 0", "--output", "x" * 300], "File name too long"),
        (["export", "{normal}", "--to", "labelling-sheet", "--output", "x" * 300], "File name too long"),
        (["show", "{normal}", "#0", "--tokenizer", "x" * 300], "File name too long"),
        (
            ["export", "{normal}", "--to", "labelling-sheet", "--output", "x", "--seed", "-1"],
            "--seed: must be 0 or more, got -1",
        ),
        (["show", "{normal}", "#99", "--tokenizer", "{model}"], "no row #99: there are #0 to #23"),
        (["export", "{normal}", "--to", "messages-jsonl", "--output", "x"], "--model_name_or_path"),
        (["compare", "{normal}", "{failed}"], "none is ok in both"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    given: list[str], reason: str, directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    paths = {name: directories.by_name(name) for name in ("normal", "failed", "images")}
    code = run([part.format(model=directories.family.directory, **paths) for part in given])
    assert code == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cal-inspect: ")
    assert reason in line
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_broken_behind_its_footer_is_named(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.parquet"
    whole = min(directories.normal.glob("*.parquet"))
    group = pq.read_metadata(whole).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    page = next(column.data_page_offset for column in columns if column.path_in_schema.startswith("label_ids"))
    data = bytearray(whole.read_bytes())
    data[page : page + 16] = b"\xff" * 16
    path.write_bytes(data)
    assert run(["summary", str(tmp_path)]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "broken.parquet is damaged: " in line


def test_several_directories_are_taken_as_one(directories: Directories, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["summary", str(directories.failed), str(directories.text_only)]) == EXIT_DONE
    both = len(list(directories.failed.glob("*.parquet"))) * 2
    assert f"in {both} files" in capsys.readouterr().out


def test_looking_imports_no_torch(directories: Directories) -> None:
    normal, model = map(str, (directories.normal, directories.family.directory))
    code = (
        "import sys; from cal_pipeline.inspect.cli import run\n"
        f"for given in (['summary', {normal!r}], ['tokens', {normal!r}, '--tokenizer', {model!r}],"
        f" ['filter', {normal!r}, 'tokens > 3']):\n    assert run(given) == 0\n"
        "try:\n    run(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_early_is_no_error(directories: Directories) -> None:
    command = f"{sys.executable} -m cal_pipeline.inspect.cli summary {directories.normal} --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert not done.stderr


def test_the_help_of_no_subcommand_imports_torch() -> None:
    code = (
        "import sys; from cal_pipeline.inspect.cli import run\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        run([name, '--help'])\n    except SystemExit as end:\n        assert end.code == 0\n"
        "    assert not {'torch', 'transformers', 'ray'} & set(sys.modules), name"
    )
    done = subprocess.run([sys.executable, "-c", code, *SUBCOMMANDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in SUBCOMMANDS:
        assert f"usage: cal-inspect {name} " in done.stdout
