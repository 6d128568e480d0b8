"""What a page's selection is saved as takes the same rows in cal-inspect, in a real Chromium."""

from __future__ import annotations

import csv
import shlex
import time
from pathlib import Path

import numpy as np
import pytest

from browser import Page, browser_test
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.page import read_page_data
from conftest import Family
from inspected_data import conversations, llava_directory, measured
from pages import HOSTILE

SHOWN = "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => Number(c.dataset.index))"


def taken(page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(id, key) of the rows that the command on the page selects, run as it stands in a shell's words."""
    monkeypatch.chdir(folder)
    words = shlex.split(page.js("document.getElementById('command').textContent"))
    assert words[:2] == ["cal-inspect", "filter"]
    (folder / "chosen.csv").unlink(missing_ok=True)
    assert run(words[1:]) == 0
    with (folder / "chosen.csv").open(newline="", encoding="utf-8") as file:
        return [(row["sample_id"], row["sample_key"]) for row in csv.DictReader(file)]


def save(page: Page, folder: Path) -> None:
    """Presses the button and waits for the file."""
    page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    (folder / "selection.csv").unlink(missing_ok=True)
    page.click("document.getElementById('save')")
    deadline = time.monotonic() + 20.0
    while not (folder / "selection.csv").exists() and time.monotonic() < deadline:
        page.frame()


@browser_test
def test_the_command_of_a_rule_selects_the_rows_that_are_shown(
    page: Page, llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a 'quoted' folder"
    path = llava_directory(llava, folder)
    assert run(["page", str(path), "--output", str(tmp_path / "report.html")]) == 0
    samples = read_page_data(tmp_path / "report.html")["samples"]
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("min_delta", "mean_delta", "max_delta", "share_negative", "tokens"):
        # Borders that are some rows' own values, as exact as they are.
        values = sorted({sample["numbers"][name] for sample in samples if sample["numbers"][name] is not None})
        for side, limit in (("below", values[len(values) // 2]), ("above", values[len(values) // 3])):
            page.open(tmp_path / "report.html", f"rule={name}&side={side}&limit={limit!r}&status=ok")
            rows = sorted(page.js(SHOWN))
            expected = [
                at for at, sample in enumerate(samples) if sample["status"] == "ok"
                and (sample["numbers"][name] < limit if side == "below" else sample["numbers"][name] > limit)
            ]  # fmt: skip
            assert rows == expected
            assert 0 < len(rows) < len(samples)
            assert page.js("document.getElementById('exact').textContent") == "It selects exactly these rows."
            assert taken(page, tmp_path, monkeypatch) == [(samples[at]["id"], samples[at]["key"]) for at in rows]
    # Left out or alone kept: what is said is what is done.
    page.open(tmp_path / "report.html", "status=image_error&use=drop")
    words = shlex.split(page.js("document.getElementById('command').textContent"))
    assert words[2:] == [str(path), "status = 'image_error'", "--drop", "--output", "clean/"]
    assert page.problems == []


@browser_test
def test_a_page_of_a_part_says_whether_the_rule_takes_more(
    page: Page, llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = llava_directory(llava, tmp_path)
    assert run(["page", str(path), "--output", str(tmp_path / "report.html"), "--samples", "15"]) == 0
    data = read_page_data(tmp_path / "report.html")
    lowest = data["leading"]["min"]
    assert 0 < lowest["count"] < 15
    for limit, exactly in ((lowest["last"], True), (1e6, False)):
        page.open(tmp_path / "report.html", f"limit={limit!r}")
        here = {(data["samples"][at]["id"], data["samples"][at]["key"]) for at in page.js(SHOWN)}
        there = taken(page, tmp_path, monkeypatch)
        assert here <= set(there)
        said = page.js("document.getElementById('exact').textContent")
        assert (len(here) == len(there)) == exactly == ("exactly" in said)


@browser_test
def test_saved_ids_select_the_marked_rows_whatever_they_are_called(
    page: Page, llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [*HOSTILE, 'comma, "quote"', "two\nlines", " blanks ", "-dash", "=SUM(1)", "'", "\u732b;\t"]
    data = conversations(tmp_path / "data", [f"answer {number} is here" for number in range(len(ids))], ids=ids)
    path = measured(llava, tmp_path / "annotated", [data], tmp_path / "data" / "images", carry="paths")
    assert run(["page", str(path), "--output", str(tmp_path / "report.html")]) == 0
    samples = read_page_data(tmp_path / "report.html")["samples"]
    # All that is found by a search; then those that are marked, by pointer and key.
    page.open(tmp_path / "report.html", "search=answer&sort=row")
    page.js("document.getElementById('select').open = true")
    save(page, tmp_path)
    assert taken(page, tmp_path, monkeypatch) == [(sample["id"], sample["key"]) for sample in samples]
    page.click("document.querySelector('[data-index=\"2\"] .mark input')")
    page.js("document.querySelector('[data-index=\"5\"] .words').focus()")
    page.key("m", 77, text="m")
    assert page.js("document.getElementById('chosen').textContent") == "Selected: the 2 marked samples."
    save(page, tmp_path)
    assert taken(page, tmp_path, monkeypatch) == [(samples[at]["id"], samples[at]["key"]) for at in (2, 5)]
    page.click("document.getElementById('clear')")
    assert page.js("document.querySelectorAll('.mark input:checked').length") == 0
    assert page.problems == []


@browser_test
def test_a_source_is_a_condition_where_the_shards_hold_it(
    page: Page, llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [
        conversations(tmp_path / name, [f"answer of {name} {number}" for number in range(3)]).rename(
            tmp_path / f"{name}.json"
        )
        for name in ("one", "it's")
    ]
    path = measured(llava, tmp_path / "annotated", places, tmp_path / "one" / "images", carry="paths")
    assert run(["page", str(path), "--output", str(tmp_path / "report.html")]) == 0
    data = read_page_data(tmp_path / "report.html")
    sources = [sample["source"] for sample in data["samples"]]
    assert len(set(sources)) == 2
    page.open(tmp_path / "report.html")
    page.js("document.getElementById('select').open = true")
    page.js("(() => { const s = document.getElementById('source'); s.selectedIndex = 1;"
            " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.frame()
    rows = sorted(page.js(SHOWN))
    assert {sources[at] for at in rows} == {min(sources)}
    if not data["filter"]["source"]:
        save(page, tmp_path)
    assert sorted(taken(page, tmp_path, monkeypatch)) == sorted(
        (data["samples"][at]["id"], data["samples"][at]["key"]) for at in rows
    )
    page.resize(390, 844)  # Long names of sources stay inside of a phone's screen, too.
    for view in ("samples", "overview", "measurement"):
        page.js(f"document.getElementById('tab-{view}').click()")
        page.frame()
        assert page.js("document.documentElement.scrollWidth") <= 390, view
    # The table of sources counts the same.
    (table,) = [table for table in data["tables"] if table["title"] == "By source"]
    assert {row[0]: int(row[1]) for row in table["rows"]} == {name: sources.count(name) for name in set(sources)}
    assert np.isclose(sum(int(row[3]) for row in table["rows"]), sum(len(item["scores"]) for item in data["samples"]))
