"""Names of sources, and the flags that take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.opened import open_annotated
from cal_trainer.data.sources import check_sources, short_names, sources_of_files, sources_of_shards
from cal_trainer.source_flags import parse_shares, parse_weights
from conftest import Family
from tiny_data import write_llava_json


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/data/coco.json"], ["coco.json"]),
        (["/data/coco.json", "ocr.json"], ["coco.json", "ocr.json"]),
        (["/x/coco/train.json", "/x/ocr/train.json", "text"], ["coco/train.json", "ocr/train.json", "text"]),
        (["a/train", "train"], ["a/train", "train"]),
        (["hf://datasets/org/one", "s3://bucket/two"], ["one", "two"]),
        (["//a", "/b"], ["a", "b"]),
    ],
)
def test_a_name_is_as_much_of_the_end_of_a_path_as_tells_it_from_others(paths: list[str], names: list[str]) -> None:
    assert list(short_names(paths)) == names


@pytest.fixture(scope="module")
def folder(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs measured in one run (`both`), and each in one of its own (`one`, `two`)."""
    top = tmp_path_factory.mktemp("sources")
    for name in ("one", "two"):
        (top / "data" / name).mkdir(parents=True)
        data, images = write_llava_json(top / "data" / name, 3)
        data = data.rename(data.with_name(f"{name}.json"))
        annotate(top / name, plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)
    inputs = [str(top / "data" / name / f"{name}.json") for name in ("one", "two")]
    folders = [str(top / "data" / name / "images") for name in ("one", "two")]
    shards = plan_shards(inputs, folders, rows_per_shard=2)
    annotate(top / "both", shards, llava.encoder, llava.model, source_column=True)
    return top


def test_sources_are_the_inputs_of_the_measurement_where_the_shards_say_them(folder: Path) -> None:
    found = sources_of_files(open_annotated(folder / "both"))
    assert found.names == ("one.json", "two.json")
    assert found.index.tolist() == [0, 0, 1, 1]


def test_else_they_are_the_paths_that_are_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sources_of_files(open_annotated([folder / "two", folder / "one"]))
    assert (found.names, found.index.tolist()) == (("two", "one"), [0, 1])
    monkeypatch.chdir(folder / "one")
    found = sources_of_files(open_annotated([Path(), folder / "two"]))
    assert (found.names, found.index.tolist()) == (("one", "two"), [0, 1])


def test_shards_that_are_given_themselves_are_of_their_directory(folder: Path) -> None:
    files = sorted((folder / "one").rglob("*.parquet")) + sorted((folder / "two").rglob("*.parquet"))
    found = sources_of_files(open_annotated(files))
    assert (found.names, found.index.tolist()) == (("one", "two"), [0, 1])


def test_sources_of_raw_data_are_its_paths(folder: Path) -> None:
    inputs = [str(folder / "data" / name / f"{name}.json") for name in ("one", "two")]
    folders = [str(folder / "data" / name / "images") for name in ("one", "two")]
    found = sources_of_shards(plan_shards(inputs, folders))
    assert (found.names, found.index.tolist()) == (("one.json", "two.json"), [0, 1])


def test_shares_are_parts_of_their_sum() -> None:
    sources = check_sources(("b", "a"), parse_shares(["a=3", "b=1"]), {})
    assert sources.shares == {"b": 0.25, "a": 0.75}
    assert sources.said() == {"mix": "b=0.25 a=0.75", "uniform_sources": None}


def test_a_source_without_weights_weighs_one_or_what_is_said() -> None:
    given = parse_weights(["split=train", "b", "c=d=1.5"])
    assert given == {"split=train": 1.0, "b": 1.0, "c=d": 1.5}
    sources = check_sources(("b", "c=d", "split=train"), {}, given)
    assert sources.shares is None
    assert sources.said() == {"mix": None, "uniform_sources": "b=1 c=d=1.5 split=train=1"}


@pytest.mark.parametrize(
    ("mix", "uniform", "message"),
    [
        (["a"], [], "--mix a: expected NAME=SHARE"),
        (["a=b"], [], "--mix a=b: expected NAME=SHARE"),
        (["a=0", "b=1"], [], "--mix a=0: a share is from 1e-06 to 1e+06; leave out data"),
        (["a=1e308", "b=1e308"], [], "--mix a=1e308: a share is from 1e-06"),
        (["a=nan", "b=1"], [], "--mix a=nan: a share"),
        (["a=1", "a=2"], [], "--mix names a twice"),
        (["a=1", "c=1"], [], "--mix c: no such source; the sources of this data are a, b"),
        (["a=1"], [], "--mix says no share of b; the sources of this data are a, b"),
        ([], ["c"], "--uniform_sources c: no such source; the sources of this data are a, b"),
        ([], ["a=0"], "--uniform_sources a=0: a weight is from 1e-06 to 1e+06"),
        ([], ["a", "a=2"], "--uniform_sources names a twice"),
    ],
)
def test_what_names_no_source_or_says_no_share_is_refused(mix: list[str], uniform: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_sources(("a", "b"), parse_shares(mix), parse_weights(uniform))
    assert str(refused.value).startswith(message)


def test_one_source_is_no_mix() -> None:
    with pytest.raises(ConfigError, match=r"--mix has no effect: all of this data is a\. Sources are"):
        check_sources(("a",), {"a": 1.0}, {})
