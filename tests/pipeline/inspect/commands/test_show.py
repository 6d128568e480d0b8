import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect import load_annotated, token_frame
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.page.shading import css, rgb_on
from cal_pipeline.inspect.tables.token_text import Pieces
from conftest import Family
from inspect_data import Directories, write
from inspected_data import conversations, measured

NASTY = '<script>alert("x")</script> & \x1b[31mred\x07 <b>'


@pytest.fixture
def nasty(directories: Directories, tmp_path: Path) -> Path:
    """A shard whose every text would like to be markup or to steer the terminal."""
    table = pq.read_table(min(directories.normal.glob("*.parquet")))
    rows = table.to_pylist()
    for row in rows:
        row["sample_id"] = NASTY
        row["error"] = NASTY
        for turn in row["messages"] or []:
            turn["content"] = turn["content"] + NASTY
        for image in row["images"]:
            image["path"] = NASTY
    return write(tmp_path / "nasty.parquet", pa.Table.from_pylist(rows, schema=table.schema))


def shown(path: Path, sample: str, model: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert run(["show", str(path), sample, "--tokenizer", str(model), *flags]) == 0
    return capsys.readouterr().out


def test_words_carry_their_numbers_where_there_are_no_colours(
    directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = load_annotated(directories.normal)
    out = shown(directories.normal, "#0", directories.family.directory, capsys, "--by", "weight")
    assert "[image 0.png, 40 x 40 pixels]" in out
    assert "user: <image>\nWhat is in the image?" in out
    tokens = token_frame(frame[:1], directories.family.directory)["token"]
    assert len(re.findall(r"\(\d\.\d\)", out)) == tokens.str.strip().ne("").sum() > 15
    assert "\x1b" not in out
    by_key = shown(directories.normal, frame["sample_key"][0], directories.family.directory, capsys, "--by", "weight")
    assert by_key == out


def test_colours_shade_words_and_draw_the_image(directories: Directories, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(directories.normal, "#0", directories.family.directory, capsys, "--color", "always")
    assert out.count("\u2580") == 40 * 20
    assert "\x1b[38;2;0;0;0;48;2;" in out


def test_escape_codes_are_for_terminals_that_may_have_them(
    directories: Directories, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def escapes(*words: str) -> bool:
        return "\x1b" in shown(directories.normal, "#0", directories.family.directory, capsys, *words)

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # As in notebooks.
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not escapes()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert escapes()
    assert not escapes("--color", "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not escapes()
    assert escapes("--color", "always")


def test_a_image_of_the_terminal_loads_nothing(directories: Directories, nasty: Path, tmp_path: Path) -> None:
    for annotated in (directories.normal, nasty):
        given = ["show", annotated, "#0", "--tokenizer", directories.family.directory, "--output", tmp_path / "a.svg"]
        assert run([str(part) for part in given]) == 0
        svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(svg)
        assert "url(" not in svg.replace("url(#", "")
        assert "<script" not in svg


def test_rows_with_one_id_are_all_shown_up_to_a_limit(
    directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(directories.normal, "id-0", directories.family.directory, capsys)
    assert out.count("id-0  (row ") == 2
    assert "2 rows have this id, 1 are shown" in shown(
        directories.normal, "id-0", directories.family.directory, capsys, "--limit", "1"
    )


def test_a_row_that_failed_says_why(directories: Directories, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(directories.failed, "#0", directories.family.directory, capsys)
    assert re.search(r"image_error: .*missing.png", out)


def test_a_sidecar_shows_its_source_s_words_and_says_when_that_is_gone(
    directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    model = directories.family.directory
    whole = shown(directories.sidecar, "#0", model, capsys)
    assert whole.splitlines()[1:] == shown(directories.normal, "#0", model, capsys).splitlines()[1:]
    source = directories.images.parent / "data.json"
    source.rename(source.with_name("moved.json"))
    try:
        gone = shown(directories.sidecar, "#0", model, capsys)
    finally:
        source.with_name("moved.json").rename(source)
    assert "data.json is gone" in gone
    words = [line for line in whole.splitlines() if line.startswith("assistant")]
    assert words == [line for line in gone.splitlines() if line.startswith("assistant")]


def test_nothing_of_the_dataset_steers_the_terminal(
    nasty: Path, directories: Directories, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(nasty, "#0", directories.family.directory, capsys)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\\x1b[31m" in out


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []
        self.titles = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.titles += tag == "span" and any(name == "title" for name, _ in attrs)


@pytest.mark.parametrize("kind", ["normal", "paths", "sidecar", "nasty"])
def test_the_page_of_a_sample_is_self_contained_and_escaped(
    kind: str, nasty: Path, directories: Directories, tmp_path: Path
) -> None:
    annotated = nasty if kind == "nasty" else directories.by_name(kind)
    path = tmp_path / "sample.html"
    given = ["show", annotated, "#0", "--tokenizer", directories.family.directory, "--output", path]
    assert run([str(part) for part in given]) == 0
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert not page.tags & {"script", "b", "link", "iframe"}
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == 1
    assert page.titles == len(load_annotated(directories.normal)["label_ids"][0])
    assert "default-src 'none'" in path.read_text(encoding="utf-8")


CAT = "\u732b"


@pytest.fixture(scope="module")
def shared(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A row whose answer holds a character of three tokens, of which the middle one has the lowest delta of all."""
    folder = tmp_path_factory.mktemp("shared")
    data = conversations(folder / "data", [f"A {CAT} here."])
    path = measured(llava, folder / "annotated", [data], folder / "data" / "images", carry="paths")
    (file,) = path.glob("*.parquet")
    table = pq.read_table(file)
    pieces = Pieces(llava.encoder.processor.tokenizer.backend_tokenizer)
    ids = table["label_ids"][0].as_py()
    last = pieces.spelled(ids).index(CAT)
    assert [pieces.spelled(ids)[at] for at in (last - 2, last - 1)] == ["", ""]
    deltas = [1.0] * len(ids)
    deltas[last - 2 : last + 1] = [0.5, -7.25, 2.0]
    column = table.schema.get_field_index("delta_logits")
    changed = table.set_column(column, table.schema.field(column), pa.array([deltas], table.schema.types[column]))
    write(file, changed)
    return path, deltas[last - 2 : last + 1]


def test_a_character_of_several_tokens_shows_all_their_deltas_and_the_extreme_in_the_shade(
    shared: tuple[Path, list[float]], llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = shared
    plain = shown(path, "#0", llava.directory, capsys)
    assert f"{CAT}(0.5, -7.2, 2.0)" in plain
    red, green, blue = rgb_on((255, 255, 255), -1.0)
    coloured = shown(path, "#0", llava.directory, capsys, "--color", "always")
    assert f"48;2;{red};{green};{blue}m{CAT}\x1b" in coloured
    assert f"characters of several tokens (delta, logits of each): {CAT}(0.5, -7.2, 2.0)" in coloured
    # Of weights the extreme is the highest.
    assert f"{CAT}(1.0, 1.3, 1.3)" in shown(path, "#0", llava.directory, capsys, "--by", "weight")
    html = tmp_path / "a.html"
    assert run(["show", str(path), "#0", "--tokenizer", str(llava.directory), "--output", str(html)]) == 0
    (span,) = re.findall(f'<span class="t" style="background:([^"]*)" title="([^"]*)">{CAT}<', html.read_text("utf-8"))
    assert span[0] == css(-1.0)
    assert span[1].startswith(f"&#x27;{CAT}&#x27; 3 tokens: delta 0.500, weight 1.000; delta -7.250, weight")


@pytest.mark.parametrize(("by", "ends"), [("score", ("against the word, -5", "5 logits, for it")),
                                          ("weight", ("weighs least, 1", "5, weighs most"))])  # fmt: skip
def test_the_bar_of_colours_has_words_at_its_ends(
    by: str, ends: tuple[str, str], directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = directories.family.directory
    html = tmp_path / "a.html"
    out = shown(directories.normal, "#0", model, capsys, "--by", by, "--color", "always").splitlines()[-1]
    assert (
        run(["show", str(directories.normal), "#0", "--by", by, "--tokenizer", str(model), "--output", str(html)]) == 0
    )
    for text in (re.sub(r"\x1b\[[0-9;]*m", "", out), html.read_text("utf-8").splitlines()[-2]):
        assert text.index(ends[0]) < text.index(ends[1])
