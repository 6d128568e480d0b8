from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cal_pipeline.sources.planning import find_sources, plan_shards
from cal_schemas.errors import ConfigError
from plain_sources import ids, write


def names(data_path: str) -> list[tuple[str, str]]:
    return [(name, input_format.name) for _, name, input_format in find_sources(data_path, "auto")]


def test_a_directory_is_searched_in_order_and_dot_names_are_ignored(tmp_path: Path) -> None:
    for name in (
        "b.json",
        "a/z.parquet",
        "a/b/c.jsonl",
        ".hidden.json",
        ".cal/x.parquet",
        "a/.git/y.json",
        "README.md",
    ):
        write(tmp_path / name)
    assert names(str(tmp_path)) == [("a/b/c", "jsonl"), ("a/z", "parquet"), ("b", "json")]


@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.json*"])
def test_linked_folders_are_searched_and_no_folder_twice(tmp_path: Path, pattern: str) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / ".elsewhere"
    for file in (data / "a.json", data / "m/b.jsonl", data / "m/.git/h.json", elsewhere / "deep/c.jsonl"):
        write(file)
    (data / "linked").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere)
    (data / "alias").symlink_to("m")
    (data / ".hidden").symlink_to(elsewhere)
    (data / "m/own").symlink_to(".")
    (data / "m/top").symlink_to("..")
    (data / "m/out").symlink_to(tmp_path)
    (elsewhere / "deep/up").symlink_to("..")
    (elsewhere / "deep/back").symlink_to(data)
    # Of two links the first names the files; a link never renames what has a name without it.
    assert names(f"{data}{pattern}") == [("a", "json"), ("again/deep/c", "jsonl"), ("m/b", "jsonl")]
    assert len(ids(plan_shards([f"{data}{pattern}"]))) == 9


def test_a_folder_that_cannot_be_searched_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.json")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refusing(path: str) -> object:  # Permissions do not bind root, who may run the tests.
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert names(str(tmp_path)) == [("a", "json")]
    assert f"{tmp_path / 'closed'} cannot be searched, so what it holds is left out: Permission denied" in caplog.text


def test_a_directory_below_a_dot_directory_is_searched_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / ".cache/data/a.json")
    assert names(str(tmp_path / ".cache/data")) == [("a", "json")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*.json", ["a", "b"]),
        ("d/[a]*.json", ["a"]),
        ("d/?.json", ["a", "b"]),
        ("d/**/*.json", ["a", "b", "e/c"]),
        ("*/e/*", ["d/e/c", "d/e/f"]),
        ("**/**/c.json", ["d/e/c"]),
        ("./d/../d/*.json", ["a", "b"]),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_glob_names_files_from_its_first_wildcard_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str], absolute: bool
) -> None:
    for name in ("d/a.json", "d/b.json", "d/e/c.json", "d/e/f.parquet", "d/.h.json"):
        write(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [name for name, _ in names(f"{tmp_path}/{pattern}" if absolute else pattern)] == expected


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "a[1].json")
    write(tmp_path / "a1.json")
    assert names(str(tmp_path / "a[1].json")) == [("a[1]", "json")]


@pytest.mark.parametrize("data_path", ["absent.json", "absent*.json", "empty", "fifo", "a.json/b.json"])
def test_a_data_path_without_files_is_refused_by_name(tmp_path: Path, data_path: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.json")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError) as error:
        plan_shards([str(tmp_path / data_path)], data_format="jsonl")
    assert str(error.value).startswith(f"--data_path {tmp_path / data_path}: no file there")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    for name in ("s-008.json", "s-009.json", "s-010.json", "s-{a}.json", "x/1.json", "y/1.json"):
        write(tmp_path / "data" / name, 1)
    monkeypatch.chdir(tmp_path)
    return lambda data_path: [shard.name.rpartition("-r")[0] for shard in plan_shards([data_path])]


@pytest.mark.parametrize(
    ("data_path", "expected"),
    [
        ("data/s-{008..010}.json", ["s-008", "s-009", "s-010"]),
        ("data/s-{010..008}.json", ["s-010", "s-009", "s-008"]),
        ("data/s-0{08,10}.json", ["s-008", "s-010"]),
        ("data/{x,y}/{1..1}.json", ["x/1", "y/1"]),
        ("data/{x,y}", ["x/1", "y/1"]),
        ("data/s-{a}.json", ["s-{a}"]),
        ("data/s-0{0,1}*.json", ["s-008", "s-009", "s-010"]),
    ],
)
def test_numbered_names_in_braces_are_all_those_files(
    tree: Callable[[str], list[str]], data_path: str, expected: list[str]
) -> None:
    assert tree(data_path) == expected


@pytest.mark.parametrize(
    ("data_path", "message"),
    [
        ("data/s-{008..012}.json", r"of its 5 names data/s-011\.json is not there"),
        ("data/s-{0..9999999}.json", "more than 1000000 names"),
        ("data/s-{1}.json", "no file there"),
    ],
)
def test_names_in_braces_that_are_not_there_are_refused(
    tree: Callable[[str], list[str]], data_path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tree(data_path)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("data.csv", "pandas.read_csv(FILE).to_parquet"),
        ("data.TSV", "sep='\\t' for TSV"),
        ("data.xlsx", "read_excel for sheets"),
        ("data.zip", "unpack it and give the folder"),
        ("film.mp4", "only images are known, no sound and no video"),
        ("0.png", "as metadata.jsonl in their folder"),
        ("notes.txt", "for other names give the files or a glob, and --data_format"),
    ],
)
def test_what_no_format_reads_is_refused_with_the_way_out_for_its_kind(name: str, way: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError) as raised:
        find_sources(str(tmp_path / name), "auto")
    assert way in str(raised.value)
