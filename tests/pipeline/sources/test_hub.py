"""Names of data sets of the Hub: configuration, split and revision, the same files as `load_dataset` takes."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from cal_pipeline.sources.hub import hub_name
from cal_pipeline.sources.images import read_images
from cal_pipeline.sources.planning import find_sources, plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ConfigError, ImageError, StoreError
from cal_schemas.storage.locations import location
from hub_server import HubServer
from tiny_models import sample_image


def parquet(*words: str) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": words, "image": pa.nulls(len(words), pa.binary())}), file)
    return file.getvalue()


def jsonl(*words: str) -> str:
    return "".join(json.dumps({"text": word}) + "\n" for word in words)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    sample_image(seed, (24, 20)).save(file, "PNG")
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"], "audio": [{"bytes": b"RIFF", "path": "a.wav"}]}), file)
    return file.getvalue()


def words(data_path: str) -> list[str]:
    samples = (sample for shard in plan_shards([data_path]) for sample in read_samples(shard))
    return [sample.messages[1].content for sample in samples if sample.messages]


def refused(data_path: str) -> str:
    with pytest.raises(ConfigError) as error:
        plan_shards([data_path])
    assert "\n" not in str(error.value)
    return str(error.value)


CARD = """---
license: mit
configs:
- config_name: {0}
  data_files:
  - split: train
    path: {0}/train-*
  - split: test
    path: ["{0}/test.parquet"]
- config_name: fr
  data_files: fr/*.parquet
- config_name: deep
  data_dir: deep
---
# Words
"""
LAYOUTS: dict[str, dict[str, Any]] = {
    "shards": {
        "data/train-00000-of-00002.parquet": parquet("a", "b"), "data/train-00001-of-00002.parquet": parquet("c"),
        "data/validation-00000-of-00001.parquet": parquet("v"), "data/all_of.it-00000-of-00001.parquet": parquet("x"),
        "extra/test.parquet": parquet("never"), "README.md": "# no metadata",
    },
    "folders": {
        "train/0.jsonl": jsonl("a"), "deep/train_2/0.jsonl": jsonl("b"), "my-test-set/x.jsonl": jsonl("t"),
        "other.jsonl": jsonl("never"), "dataset_infos.json": "{}",
    },
    "files": {
        "train.jsonl": jsonl("a"), "x/dev.0.jsonl": jsonl("d"), "x/y_eval.jsonl": jsonl("e"), "trained.jsonl": "",
    },
    "one": {"a.jsonl": jsonl("a"), "b/c.jsonl": jsonl("b"), ".cache/z.jsonl": jsonl("h"), "__x/z.jsonl": jsonl("h")},
    "mixed": {"a.parquet": parquet("a"), "b.parquet": parquet("b"), "figures.json": '{"rows": 2}'},
    "configs": {
        "README.md": CARD.format("en"), "en/train-0.parquet": parquet("a"), "en/train-1.parquet": parquet("b"),
        "en/test.parquet": parquet("t"), "fr/1.parquet": parquet("f"), "deep/train/0.parquet": parquet("d"),
        "deep/test/0.parquet": parquet("e"),
    },
    "default": {
        "README.md": CARD.format("default"), "default/train-0.parquet": parquet("a"),
        "default/test.parquet": parquet("t"), "fr/1.parquet": parquet("f"), "deep/x.parquet": parquet("d"),
    },
}  # fmt: skip


READ = {
    "shards": ["a", "b", "c", "v", "x"],
    "shards:train": ["a", "b", "c"],
    "shards:default/validation": ["v"],
    "shards:all_of.it": ["x"],
    "folders": ["b", "a", "t"],
    "folders:test": ["t"],
    "files": ["a", "d", "e"],
    "files:test": ["e"],
    "one": ["a", "b"],
    "mixed:train": ["a", "b"],
    "configs:en": ["a", "b", "t"],
    "configs:en/test": ["t"],
    "configs:fr": ["f"],
    "configs:deep/train": ["d"],
    "default:train": ["a"],
    "default": ["a", "t"],
    "default:fr/train": ["f"],
}


@pytest.mark.parametrize("name", READ)
def test_a_name_has_its_rows_in_the_order_of_splits_and_files(hub: HubServer, name: str) -> None:
    layout = name.partition(":")[0]
    hub.commit(f"org/{layout}", LAYOUTS[layout])
    assert words(f"org/{name}") == words(f"hf://datasets/org/{name}") == READ[name]


LOAD = """
import datasets, json, sys
read = {}
for name in json.loads(sys.argv[1]):
    layout, _, which = name.partition(":")
    config, _, split = which.rpartition("/")
    if split in ("en", "fr"):
        config, split = split, ""
    loaded = datasets.load_dataset(f"org/{layout}", config or None, streaming=True)
    read[name] = [row["text"] for part in ([split] if split else loaded) for row in loaded[part]]
print(json.dumps(read))
"""


@pytest.mark.full
def test_these_are_the_rows_that_load_dataset_gives(hub: HubServer, tmp_path: Path) -> None:
    for layout, files in LAYOUTS.items():
        hub.commit(f"org/{layout}", files)
    done = subprocess.run([sys.executable, "-c", LOAD, json.dumps([*READ])], capture_output=True, text=True,
                          env=os.environ | {"HF_HOME": str(tmp_path)}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, rows in json.loads(done.stdout.splitlines()[-1]).items():
        assert sorted(rows) == sorted(READ[name]), name


def test_a_split_among_several_is_told_of_and_one_that_is_not_there_refused(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    sha = hub.commit("org/shards", LAYOUTS["shards"])
    hub.commit("org/configs", LAYOUTS["configs"])
    with caplog.at_level(logging.INFO):
        find_sources("org/shards", "auto")
        find_sources("org/shards:train", "auto")
    first, warning, second = (record.getMessage() for record in caplog.records if record.name.endswith("hub"))
    assert f"org/shards: data set of the Hub at commit {sha}, configuration default: train (2 files), valid" in first
    assert warning == (
        "org/shards has several splits, and all are read: for one give org/shards:train or org/shards:validation or "
        "org/shards:all_of.it"
    )
    assert second.endswith("configuration default: train (2 files)")
    assert refused("org/shards:tset").endswith(
        "no split 'tset'; give org/shards:train or org/shards:validation or org/shards:all_of.it"
    )
    ways = "give org/configs:en/train or org/configs:en/test or org/configs:fr/train or org/configs:deep/test or"
    assert f"org/configs: several configurations and no default one; {ways[:60]}" in refused("org/configs")
    assert "org/configs:train: no configuration 'train'; give org/configs:en/train" in refused("org/configs:train")
    assert "no configuration 'de'" in refused("org/configs:de/train")


def test_a_split_of_which_nothing_would_be_read_and_files_of_another_format_are_told_of(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.commit("org/kinds", {"train/a.parquet": parquet("a"), "train/b.parquet": parquet("b"), "test/t.jsonl": "{}"})
    said = "kinds: no file of its split 'test' is read beside those of the others; not read: 1 .jsonl; give org/kinds:t"
    assert said in refused("org/kinds")
    assert words("org/kinds:train") == ["a", "b"]
    card = CARD.format("default").replace("default/test", "gone/test")
    hub.commit("org/gone", {"README.md": card, "default/train-0.parquet": parquet("a")})
    assert refused("org/gone").endswith("'test' is read beside those of the others; give org/gone:default/train")
    caplog.set_level(logging.WARNING, "cal_pipeline")
    hub.commit("org/two", {"a.jsonl": jsonl("a"), "b.jsonl": jsonl("b"), "c.parquet": parquet("c"), "d.txt": "d"})
    assert words("org/two") == ["a", "b"]
    assert caplog.messages[0].endswith("train (2 files); not read: 1 .parquet, 1 .txt")


def test_a_card_of_another_editor_is_read_too(hub: HubServer) -> None:
    card = "\ufeff---\r\nconfigs:\r\n- config_name: 2024\r\n  data_files: a b/*.jsonl\r\n---\r\n"
    hub.commit("org/name", {"README.md": card, "a b/ü #?%41.jsonl": jsonl("a"), "other.jsonl": jsonl("never")})
    assert words("org/name") == words("org/name:2024/train") == ["a"]


def test_revisions_and_files_of_a_name_are_read_too(hub: HubServer) -> None:
    old = hub.commit("org/name", {"train.jsonl": jsonl("old"), "more/test.jsonl": jsonl("t")})
    hub.commit("org/name", {"train.jsonl": jsonl("new")})
    hub.commit("org/name", {"default/train/0000.parquet": parquet("converted")}, branch="refs/convert/parquet")
    assert words("org/name:train") == ["new"]
    assert words(f"org/name@{old}:train") == words(f"hf://datasets/org/name@{old}:train") == ["old"]
    assert words(f"hf://datasets/org/name@{old}/train.jsonl") == ["old"]
    assert words("hf://datasets/org/name/more") == words("hf://datasets/org/name/**/t*t.jsonl") == ["t"]
    assert words("hf://datasets/org/name/{more/test,train}.jsonl") == ["t", "new"]
    assert words("hf://datasets/org/name@refs/convert/parquet/default/train/*.parquet") == ["converted"]
    (shard,) = plan_shards(["hf://datasets/org/name/more"], data_format="jsonl")
    assert (shard.name, shard.source.mtime_ns) == ("test-r000000000-000000001", 0)
    assert shard.source.uri == f"hf://datasets/org/name@{shard.source.revision}/more/test.jsonl"
    assert "no file there" in refused("hf://datasets/org/name/nothing")


def test_what_is_there_in_the_file_system_is_that(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("org/name", {"train.jsonl": jsonl("of the Hub")})
    monkeypatch.chdir(tmp_path)
    assert words("org/name") == ["of the Hub"]
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "org/name/a.jsonl").write_text(jsonl("of the disk"))
    before = len(hub.requests)
    assert words("org/name") == ["of the disk"]
    assert len(hub.requests) == before
    assert words("hf://datasets/org/name") == ["of the Hub"]
    for path in (
        "org/a.json",
        "org",
        "./org/no",
        "../no/no",
        "/no/no",
        "örg/näme",
        "no/no/no",
        "org/*",
        "no\\no/x",
        "org/no/",
    ):
        assert hub_name(path) is None


def test_a_path_that_was_mistyped_is_said_to_be_neither(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused("data/train")
    assert said.startswith("--data_path data/train: no such file or directory here, and hf://datasets/data/train: ")
    assert "(401 RepoNotFound" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no such file or directory here, and hf://datasets/data/train: HF_HUB_OFFLINE is set" in refused(
        "data/train"
    )


def test_what_was_meant_for_the_hub_or_a_saved_split_is_told_its_spelling(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.commit("org/named", {"train.jsonl": '{"image": "a.png", "text": "A caption."}\n'})
    assert refused("org/named/data").endswith(" (on the Hub: hf://datasets/org/named/data)")
    assert refused("datasets/org/named").endswith(" (on the Hub: hf://datasets/org/named)")
    assert "a part of org/named:train is --limit or --sample" in refused("org/named:train[:50%]")
    assert refused("org/train.json").endswith("no glob that finds any")
    (tmp_path / "org/saved/train").mkdir(parents=True)
    assert refused("org/saved/data").endswith("no glob that finds any")
    assert refused("./org/saved:train").endswith("; of a folder of splits give ./org/saved/train")
    with pytest.raises(ConfigError, match=r"where they are \(beside it: hf://datasets/org/named@[0-9a-f]{40}\)$"):
        plan_shards(["hf://datasets/org/named"])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"name.py": "code", "README.md": "x"}, "its rows come from a script (name.py), which is not run here"),
        ({"train/a.mp3": "x", "train/b.wav": "x"}, "holds 1 .mp3, 1 .wav; read are .arrow, .json,"),
        ({"a.parquet": sound()}, "has the column 'audio' and no image; no sound and no video is known"),
        ({"train.csv": "x"}, "load_dataset(...).to_parquet(FILE) makes a file that is read"),
        ({"train.zip": "x", "a.png": "x"}, "fetch it with hf download, unpack it and give the folder"),
        ({"README.md": "x"}, "holds 1 .md; read are"),
        ({}, "holds no files; read are"),
        ({"README.md": "---\na: [\n---\n"}, "the metadata of its README.md is no YAML: while parsing"),
        ({"README.md": "---\nconfigs: [{data_files: x}]\n---\n"}, "a configuration without a config_name"),
        (
            {"README.md": "---\nconfigs: [{config_name: a, data_files: 'https://x.org/a.json'}]\n---\n"},
            "lies elsewhere",
        ),
        ({"README.md": "---\nconfigs: [{config_name: a, data_files: x}]\n---\n", "y.jsonl": "{}"}, "holds no files"),
    ],
)
def test_a_layout_that_is_not_read_is_refused_in_one_line(hub: HubServer, files: dict[str, str], said: str) -> None:
    hub.commit("org/name", {**files, ".gitattributes": None})
    assert said in refused("org/name")


def test_images_in_the_repository_are_read_by_the_metadata_that_names_them(hub: HubServer) -> None:
    files: dict[str, Any] = {f"{split}/images/{n}.png": png(n) for split in ("train", "test") for n in range(3)}
    for split in ("train", "test"):
        lines = [{"file_name": f"images/{n}.png", "text": f"{split} {n}"} for n in range(3)]
        files[f"{split}/metadata.jsonl"] = "".join(f"{json.dumps(line)}\n" for line in lines)
    sha = hub.commit("org/pets", files)
    (shard,) = plan_shards(["org/pets:train"])
    assert shard.source.image_folder == f"hf://datasets/org/pets@{sha}/train"
    hub.commit("org/pets", {"train/images/0.png": png(9), "train/images/1.png": None})
    for number, sample in enumerate(read_samples(shard)):
        (data,) = read_images(sample.images, location(shard.source.image_folder))
        assert data == png(number)
    assert [sample.images[0].path for sample in read_samples(shard)] == [f"images/{n}.png" for n in range(3)]
    # One list for all folders: nobody says which rows are of which split.
    root = "".join(json.dumps({"file_name": f"{split}/0.png", "text": split}) + "\n" for split in ("train", "test"))
    hub.commit("org/one", {"metadata.jsonl": root, "train/0.png": png(0), "test/0.png": png(1)})
    assert words("org/one") == ["train", "test"]
    assert "no split 'train'; give org/one:all" in refused("org/one:train")


def test_images_of_a_folder_of_the_hub_may_be_named_by_other_data(hub: HubServer, tmp_path: Path) -> None:
    sha = hub.commit("org/images", {"coco/0.png": png(0)})
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "coco/0.png", "text": "a cat"}) + "\n")
    (shard,) = plan_shards([str(tmp_path / "a.jsonl")], ["hf://datasets/org/images"])
    assert shard.source.image_folder == f"hf://datasets/org/images@{sha}"
    (sample,) = read_samples(shard)
    folder = location(str(shard.source.image_folder))
    assert read_images(sample.images, folder) == [png(0)]
    hub.commit("org/images", {"coco/0.png": None, "x": "y"})
    assert read_images(sample.images, folder) == [png(0)]
    with pytest.raises(ImageError, match="is not an object in hf://datasets/org/images@"):
        read_images(sample.images, location("hf://datasets/org/images").pinned())  # type: ignore[union-attr]
    hub.where, hub.only = "/paths-info/", {"POST"}
    hub.faults.extend(["500"] * 8)
    with pytest.raises(StoreError, match="after 8 tries"):
        read_images(sample.images, folder)


def test_a_saved_data_set_is_read_from_the_hub_as_well(hub: HubServer, tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"text": [f"words {n}" for n in range(50)]})
    datasets.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(tmp_path / "saved")
    files = {path.relative_to(tmp_path / "saved").as_posix(): path.read_bytes()
             for path in (tmp_path / "saved").rglob("*") if path.is_file()}  # fmt: skip
    hub.commit("org/saved", {**files, "README.md": "x", "train/cache-1.arrow": files["test/data-00000-of-00001.arrow"]})
    hub.faults.extend(["cut", "drop"])
    hub.where = "/cdn/"
    assert words("org/saved:train") == [f"words {n}" for n in range(50)]
    assert words("org/saved:test") == ["words 0", "words 1", "words 2"]
