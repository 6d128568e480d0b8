"""Every subcommand of cal-inspect reads from a store and writes to it, or refuses it in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, SUBCOMMANDS, run
from cal_pipeline.inspect.commands.page import read_page_data
from cal_schemas.storage.object_path import ObjectPath
from conftest import Family
from inspected_data import conversations, measured

LOCAL_ONLY = "this is written to local disks only"
# What follows the subcommand. {a} is the annotated prefix in the bucket, {out} a prefix for output there.
COMMANDS: dict[str, tuple[list[str], dict[str, bytes]]] = {
    "summary": (["{a}"], {}),
    "tokens": (["{a}", "--output", "{out}/tokens.csv"], {"tokens.csv": b"token_id,token,"}),
    "plot": (["{a}", "--output", "{out}/deltas.png"], {"deltas.png": b"\x89PNG"}),
    "show": (["{a}", "#0", "--output", "{out}/sample.html"], {"sample.html": b"<!doctype html>"}),
    "filter": (["{a}", "tokens > 0", "--ids", "{out}/ids.csv"], {"ids.csv": b"sample_id,sample_key"}),
    "samples": (["{a}", "--output", "{out}/samples.parquet"], {"samples.parquet": b"PAR1"}),
    "compare": (["{a}", "{a}", "--output", "{out}/scatter.pdf"], {"scatter.pdf": b"%PDF"}),
    "export": (["{a}", "--to", "labelling-sheet", "--output", "sheet"], {}),
    "push": (["{a}", "--repo_id", "a/b", "--images", "embed", "--dry_run", "card"], {}),
    "agreement": (["{out}/sheet.csv", "--annotated", "{a}"], {}),
    "page": (["{a}", "--output", "{out}/report.html"], {"report.html": b"<!doctype html>"}),
    "audit": (["{a}", "--fraction", "1", "--swap", "2", "--json", "{out}/audit.json", "--device", "cpu"],
              {"audit.json": b"{"}),
    "attention": (["{a}", "--sample", "#0", "--output", "{out}/map.png", "--json", "{out}/map.json", "--device", "cpu"],
                  {"map.png": b"\x89PNG", "map.json": b"["}),
    "patch-words": (["{a}", "--sample", "#0", "--output", "{out}/w.png", "--csv", "{out}/w.csv", "--device", "cpu"],
                    {"w.png": b"\x89PNG", "w.csv": b"checkpoint,row"}),
}  # fmt: skip
REFUSED = {
    "filter": (["{a}", "tokens > 0", "--output", "{out}/kept"], LOCAL_ONLY),
    "export": (["{a}", "--to", "labelling-sheet", "--output", "{out}/sheet"], LOCAL_ONLY),
    "show": (["{a}", "#0", "--tokenizer", "{out}/model"], "no such directory, and the hub did not give it"),
    "audit": (["{a}", "--model_name_or_path", "{out}/model"], "no such directory, and the hub did not give it"),
    "summary": (["{scheme}://nobody-s-bucket/a"], "nobody-s-bucket"),
    "plot": (["{a}", "--output", "{scheme}://nobody-s-bucket/a.png"], "nobody-s-bucket"),
    "page": (["{a}", "--output", "{out}"], "the name must end in .html"),
    "tokens": (["ftp://host/a"], "no store is known for ftp://"),
}


@pytest.fixture(scope="module")
def annotated(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    data = conversations(folder / "data", ["A red car on the left.", "A dog.", "Two blue buses."])
    return measured(llava, folder / "annotated", [data], folder / "data" / "images", carry="images")


@pytest.fixture
def placed(annotated: Path, bucket: ObjectPath) -> dict[str, str]:
    """What a command line may name, with the annotated directory and a marked sheet in the bucket."""
    for file in annotated.rglob("*"):
        if file.is_file():
            (bucket / "annotated" / str(file.relative_to(annotated))).upload(file, if_absent=True)
    (shard,) = annotated.glob("*.parquet")
    keys = pq.read_table(shard, columns=["sample_key"])["sample_key"].to_pylist()
    marks = "".join(f"k{key},{mark}\n" for key, mark in zip(keys, ("yes", "no", "no"), strict=True))
    (bucket / "out" / "sheet.csv").write_text(f"key,contradictory\n{marks}")
    return {"a": str(bucket / "annotated"), "out": str(bucket / "out"), "scheme": bucket.scheme}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_reads_from_the_store_and_writes_to_it(
    name: str, placed: dict[str, str], bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given, expected = COMMANDS[name]
    code = run([name, *(part.format(**placed) for part in given)])
    out, err = capsys.readouterr()
    assert code == EXIT_DONE, err
    assert out.strip()
    for file, start in expected.items():
        assert (bucket / "out" / file).read_bytes().startswith(start)
        assert f"{placed['out']}/{file}" in out or file.endswith(".json") or "--csv" in given
    left = {"export": {"sheet"}, "push": {"card"}}.get(name, set())
    assert {path.name for path in tmp_path.iterdir()} == left, "nothing lies in a local directory named as the scheme"


def test_every_subcommand_is_in_the_table() -> None:
    assert set(COMMANDS) == set(SUBCOMMANDS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_store_cannot_be_asked_for_is_refused_in_one_line(
    name: str,
    placed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given, reason = REFUSED[name]
    assert run([name, *(part.format(**placed) for part in given)]) == EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_store_is_what_would_lie_on_the_disk(
    placed: dict[str, str], annotated: Path, bucket: ObjectPath, tmp_path: Path
) -> None:
    for name, ending in (("tokens", "tokens.csv"), ("plot", "deltas.png"), ("page", "report.html")):
        title = ["--title", "t"] if name == "page" else []
        assert run([name, str(annotated), *title, "--output", str(tmp_path / ending)]) == EXIT_DONE
        assert run([name, placed["a"], *title, "--output", f"{placed['out']}/{ending}"]) == EXIT_DONE
        here, there = (tmp_path / ending).read_bytes(), (bucket / "out" / ending).read_bytes()
        if name != "page":
            assert here == there
    (tmp_path / "there.html").write_bytes(there)
    one, other = (read_page_data(tmp_path / file) for file in ("report.html", "there.html"))
    assert one["samples"] == other["samples"]
    assert run(["filter", placed["a"], "tokens > 0", "--ids", f"{placed['out']}/ids.csv"]) == EXIT_DONE
    rows = list(csv.DictReader((bucket / "out" / "ids.csv").read_text().splitlines()))
    assert [row["file"].startswith(placed["a"]) for row in rows] == [True] * 3
