"""The study's record: keys say all that a row depends on, a broken file is mended once, a repetition is compared."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

import condition
import repeated
import results
import run
from arms import ARMS
from artifacts import ArtifactCache
from condition import MAX_SEEDS, Run, Sizes
from results import RecordError

UNIFORM = Run(world="shapes", seed=0, noise=0.3, weights="uniform")
CACHED = Run(world="shapes", seed=0, noise=0.3, weights="cached", reference="initial")


def test_a_condition_is_keyed_by_what_it_is() -> None:
    assert UNIFORM.key == dataclasses.replace(UNIFORM, alpha="0.2").key
    assert UNIFORM.key != dataclasses.replace(UNIFORM, seed=1).key
    with pytest.raises(ValueError, match="reference"):
        Run(world="shapes", seed=0, noise=0.3, weights="cached")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Sizes)])
def test_another_size_is_another_key_in_another_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = UNIFORM.key, CACHED.measurement.key, ArtifactCache("shapes", 0, tmp_path).folder.parent
    value = getattr(condition.SIZES, name)
    other = dataclasses.replace(condition.SIZES, **{name: "linear" if isinstance(value, str) else 2 * value})
    monkeypatch.setattr(condition, "SIZES", other)
    after = UNIFORM.key, CACHED.measurement.key, ArtifactCache("shapes", 0, tmp_path).folder.parent
    assert not set(before) & set(after)


def test_a_seed_that_the_report_would_not_look_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="MAX_SEEDS"):
        dataclasses.replace(UNIFORM, seed=MAX_SEEDS)
    monkeypatch.setattr(sys, "argv", ["run.py", "quick", "--seeds", str(MAX_SEEDS + 1), "--results_dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        run.main()
    assert "MAX_SEEDS" in capsys.readouterr().err


def test_make_study_runs_every_arm() -> None:
    makefile = Path(run.__file__).parents[1] / "Makefile"
    (named,) = re.findall(r"^ARMS \?= (.*)$", makefile.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted([*named.split(), "quick"]) == sorted(ARMS)  # `quick` is a part of `reference`


def test_a_killed_study_leaves_whole_rows(tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    table.add(CACHED, {"accuracy": 0.5, "nll": 1.25, "drift_log": [(0, 0.9, 0.1)]})
    whole = table.path.read_text()
    table.path.write_text(whole + "abc,shapes,0")
    assert table.keys() == {CACHED.key}
    with pytest.raises(RecordError, match="ends within a line"):
        table.add(UNIFORM, {"nll": 1.0})
    assert table.path.read_text() == whole + "abc,shapes,0", "only `repair` writes what was there"
    table.repair()
    assert table.path.read_text() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["runs.csv"]
    (row,) = table.read().to_dict("records")
    assert (row["accuracy"], row["nll"], row["alpha"], row["drift_log"]) == (0.5, 1.25, "0.2", "[[0, 0.9, 0.1]]")
    assert math.isnan(row["text_nll"])
    assert table.item(row) == CACHED


@pytest.mark.parametrize("left", ["", "key,wor"])
def test_a_study_killed_within_the_header_begins_anew(left: str, tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    table.path.write_text(left)
    assert table.keys() == set()
    table.repair()
    table.add(UNIFORM, {"nll": 1.25})
    table.add(CACHED, {"nll": 1.5})
    assert table.keys() == {UNIFORM.key, CACHED.key}


def test_rows_go_under_their_own_columns_or_nowhere(tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    with pytest.raises(RecordError, match="no columns for beauty"):
        table.add(UNIFORM, {"beauty": 1.0})
    assert not table.path.exists()
    table.path.write_text("key,world,nll\nabc,shapes,1.0\n")
    for using in (table.keys, lambda: table.add(UNIFORM, {"nll": 1.25})):
        with pytest.raises(RecordError, match="begins with 'key,world,nll'"):
            using()
    assert table.path.read_text() == "key,world,nll\nabc,shapes,1.0\n"


@pytest.mark.parametrize("line", ["abc,shapes,0", "\0\0\0"])
def test_a_row_that_is_not_the_record_s_own_is_refused_by_its_line(line: str, tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    table.add(dataclasses.replace(UNIFORM, noise=0.0), {"nll": 1.25})
    assert len(table.keys()) == 1
    with table.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecordError, match=r"runs\.csv has a row that is not one of its own"):
        table.keys()


def test_a_row_names_the_code_that_made_it(tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    table.add(UNIFORM, {"nll": 1.25})
    (versions,) = table.read()["versions"]
    assert re.search(r"^cal-vlm=\S+ torch=\S+ .* code=[0-9a-f]{12}$", versions)


def test_a_digest_is_of_the_code_and_not_of_its_place(tmp_path: Path) -> None:
    folders = [tmp_path / name / "package" for name in ("b", "a")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "one.py").write_text("x = 1\n")
    here, there = (results.code_digest(folder.glob("*.py")) for folder in folders)
    assert here == there
    (folders[0] / "one.py").write_text("x = 2\n")
    assert results.code_digest(folders[0].glob("*.py")) != there


def recorded(directory: Path, nlls: dict[Run, float]) -> Path:
    for item, nll in nlls.items():
        results.runs(directory).add(item, {"nll": nll, "accuracy": 0.5})
    return directory


@pytest.mark.parametrize(("nll", "code"), [(1.26, 0), (1.36, 1), (math.nan, 1)])
def test_a_repetition_is_compared_with_the_record_row_by_row(nll: float, code: int, tmp_path: Path) -> None:
    record = recorded(tmp_path / "record", {CACHED: 1.25})
    again = recorded(tmp_path / "again", {CACHED: nll, dataclasses.replace(CACHED, seed=1): 9.0})
    done = subprocess.run(
        [sys.executable, repeated.__file__, again, "--record", record], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    first, last = done.stdout.splitlines()
    assert first == f"nll {nll - 1.25:+.5f}, accuracy +0.00000: run shapes 0 0.3 cached initial"
    assert last.startswith("1 rows, 1 more that the record lacks; ")
    assert last.endswith(f"{code} beyond 0.1")


@pytest.mark.parametrize(("gain", "code"), [(0.08, 0), (0.0, 1)])
def test_a_repetition_that_lost_its_weights_is_no_success(
    gain: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(tmp_path / "record", {UNIFORM: 1.0, CACHED: 0.92})
    again = recorded(tmp_path / "again", {UNIFORM: 1.0, CACHED: 1.0 - gain})
    assert repeated.compare(again, record) == code
    assert f"mean gain of weighted runs, shapes: {gain:+.3f} nats, recorded +0.080" in capsys.readouterr().out


def test_rows_of_other_code_are_no_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, again = (recorded(tmp_path / name, {UNIFORM: 1.0}) for name in ("record", "again"))
    monkeypatch.setattr(results, "versions", lambda: "code=edited")
    assert repeated.compare(again, record) == 2
    assert "this is code=edited: remove it, and repeat the arm" in capsys.readouterr().err


def test_a_repetition_without_a_run_of_the_record_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["repeated.py", str(tmp_path)])
    assert repeated.main() == 1
