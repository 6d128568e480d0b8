from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from cal_pipeline.inspect import load_annotated, token_frame
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.plot import count_groups
from cal_pipeline.inspect.page import plots
from cal_pipeline.inspect.page.shading import AGAINST, FOR
from cal_schemas.delta_counts import DeltaCounts
from cal_schemas.opened import open_annotated
from inspect_data import Directories, write

CAT = "\u732b"


def grouped(directories: Directories, path: Path, kinds: Sequence[str | None]) -> Path:
    """A shard of ok rows, as many as `kinds`, with these in a column of their own."""
    table = pq.read_table(min(directories.normal.glob("*.parquet")))
    ok = np.flatnonzero(np.array(table["status"].to_pylist()) == "ok")
    rows = table.take(pa.array(np.resize(ok, len(kinds))))
    return write(path, rows.append_column("kind", pa.array(kinds, pa.string())))


def tokens_of(path: Path, kind: str | None) -> int:
    frame = load_annotated(path)
    mine = frame["kind"].isna() if kind is None else frame["kind"] == kind
    return int(sum(np.isfinite(deltas).sum() for deltas in frame["delta_logits"][mine]))


def test_the_eight_groups_with_most_tokens_are_drawn_however_late_they_come(
    directories: Directories, tmp_path: Path
) -> None:
    large = [f"large {number}" for number in range(8)]
    kinds = [*(f"small {number}" for number in range(90)), *(name for name in large for _ in range(20))]
    path = grouped(directories, tmp_path / "a.parquet", kinds)
    groups = count_groups(open_annotated(path), "kind")
    assert list(groups) == [*large, "(others)"]
    for name in large:
        assert groups[name][0].defined == groups[name][1].defined == tokens_of(path, name)
    assert groups["(others)"][0].defined == sum(tokens_of(path, name) for name in kinds[:90])


def test_a_row_without_a_value_is_no_text_that_is_spelled_like_one(directories: Directories, tmp_path: Path) -> None:
    kinds = [None, "None", "(null)", "(others)", None]
    path = grouped(directories, tmp_path / "a.parquet", kinds)
    groups = count_groups(open_annotated(path), "kind")
    assert {name: deltas.defined for name, (deltas, _) in groups.items()} == {
        "(null)": tokens_of(path, None), "None": tokens_of(path, "None"), "'(null)'": tokens_of(path, "(null)"),
        "'(others)'": tokens_of(path, "(others)"),
    }  # fmt: skip


def test_the_weights_of_a_group_are_those_of_training(directories: Directories, tmp_path: Path) -> None:
    path = grouped(directories, tmp_path / "a.parquet", ["a", "b"] * 20)
    weighting = {"alpha": 0.5, "beta": 2.0, "window": 5}
    groups = count_groups(open_annotated(path), "kind", **weighting)
    frame = load_annotated(path)
    for name in "ab":
        tokens = token_frame(frame[frame["kind"] == name], directories.family.directory, **weighting)  # type: ignore[arg-type]
        deltas, weights = groups[name]
        assert weights.mean == pytest.approx(tokens["weight"].mean(), rel=1e-6)
        assert deltas.mean == pytest.approx(tokens["delta"].mean(), rel=1e-5)
    figure = plots.score_figure({"all tokens": groups["a"]}, alpha=0.5, beta=2.0)
    of_weights = figure.axes[1]
    assert "weight" in of_weights.get_xlabel()
    assert sum(bar.get_height() for bar in of_weights.patches) == pytest.approx(1.0)
    edges = np.linspace(0.5, 2.0, plots.WEIGHT_BINS + 1)
    of_a = token_frame(frame[frame["kind"] == "a"], directories.family.directory, **weighting)["weight"]  # type: ignore[arg-type]
    np.testing.assert_allclose(
        [bar.get_height() for bar in of_weights.patches], np.histogram(of_a, edges)[0] / len(of_a), atol=2 / len(of_a)
    )


def test_bars_are_red_below_0_and_blue_above() -> None:
    counts = DeltaCounts()
    counts.add(np.array([-3.0, -0.01, 0.0, 0.01, 4.0], np.float32))
    figure = plots.score_figure({"all tokens": (counts, counts)}, alpha=1.0, beta=5.0)
    for bar in figure.axes[0].patches:
        colour = tuple(round(part * 255) for part in bar.get_facecolor()[:3])
        assert colour == (AGAINST if bar.get_x() < 0 else FOR)
    assert 0.0 in [bar.get_x() for bar in figure.axes[0].patches]
    assert "against" in figure.axes[0].get_xlabel()
    assert "for" in figure.axes[0].get_xlabel()


def test_a_name_is_never_a_formula(directories: Directories, tmp_path: Path) -> None:
    path = grouped(directories, tmp_path / "a.parquet", ["$x^{$", r"$\frac$", "$a$"])
    for suffix in (".png", ".svg"):
        given = ["plot", str(path), "--by", "kind", "--output", str(tmp_path / f"out{suffix}")]
        assert run(given) == 0
    counts = (DeltaCounts(), DeltaCounts())
    for one in counts:
        one.add(np.ones(3, np.float32))
    figure = plots.score_figure({"$a$": counts, "$b$": counts}, alpha=1.0, beta=5.0, title="$c$")
    plots.save(figure, tmp_path / "named.png")
    dollars = [text for text in figure.findobj(Text) if "$" in text.get_text()]
    assert len(dollars) == 3
    assert not any(text.get_parse_math() for text in dollars)
    # A directory's name in the figures of `compare`.
    odd = tmp_path / "$x^{$"
    odd.mkdir()
    (odd / "a.parquet").write_bytes(path.read_bytes())
    assert run(["compare", str(odd), str(path), "--output", str(tmp_path / "compared.png")]) == 0


@pytest.fixture
def font_of_cats(tmp_path: Path) -> Iterator[str]:
    """An installed font that has one character, a square."""
    pen = TTGlyphPen(None)
    for move, point in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 800)), (pen.lineTo, (800, 800)), (pen.lineTo, (800, 0))):
        move(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord(CAT): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": square})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Of Cats", "styleName": "Regular", "psName": "OfCats"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    before = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "cats.ttf")
    yield "Of Cats"
    fontManager.ttflist[:] = before


def test_characters_come_from_any_installed_font_that_has_them(
    directories: Directories, font_of_cats: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = DeltaCounts()
    counts.add(np.ones(3, np.float32))
    figure = plots.score_figure({CAT: (counts, counts), "b": (counts, counts)}, alpha=1.0, beta=5.0)
    plots.save(figure, tmp_path / "a.svg")
    (named,) = [text for text in figure.findobj(Text) if CAT in text.get_text()]
    assert font_of_cats in named.get_fontfamily()
    assert "OfCats" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert not caplog.records


def test_what_no_font_has_is_said_in_one_line(
    directories: Directories, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "DejaVu" in font.name])
    path = grouped(directories, tmp_path / "a.parquet", [f"{CAT} \x07", "b"])
    with caplog.at_level(logging.WARNING):
        assert run(["plot", str(path), "--by", "kind", "--output", str(tmp_path / "out.png")]) == 0
    (record,) = [item for item in caplog.records if item.name.endswith("fonts")]
    assert f"no installed font has \\x07{CAT}: boxes" in record.getMessage()


@pytest.mark.full
def test_many_groups_take_at_most_twice_the_time_of_none(directories: Directories, tmp_path: Path) -> None:
    path = grouped(directories, tmp_path / "a.parquet", [f"group {number % 400}" for number in range(60_000)])
    opened = open_annotated(path)
    ratios = []
    for _ in range(3):
        start = time.process_time()
        count_groups(opened, None)
        middle = time.process_time()
        assert len(count_groups(opened, "kind")) == 9
        ratios.append((time.process_time() - middle) / (middle - start))
    assert statistics.median(ratios) < 2.0, ratios
