"""What a reader of a page sees first, can read and reach, in a real Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from browser import Page, browser_test
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.page import page_text, read_page_data
from conftest import Family
from inspect_data import Directories, write
from inspected_data import llava_directory

SHOWN = "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => Number(c.dataset.index))"
VIEWS = ("samples", "overview", "measurement")
# Every text that is drawn, with the WCAG contrast of its colour on what lies under it, both as computed by the browser.
CONTRASTS = """(() => {
  const parse = (text) => {
    const [r, g, b, a] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a === undefined ? 1 : a];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const found = [];
  const add = (element, style, text) => {
    const inSvg = element instanceof SVGElement;
    const under = ground(element);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const value = ratio(over(parse(inSvg ? style.fill : style.color), under), under);
    found.push([value / (large ? 3 : 4.5), value, `${element.tagName}.${element.className} ${text.slice(0, 40)}`]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, noscript, [hidden], :disabled, option")) continue;
    add(element, getComputedStyle(element), walker.currentNode.data.trim());
  }
  for (const input of document.querySelectorAll("input, select")) {
    if (input.closest("[hidden]")) continue;
    add(input, getComputedStyle(input), "its value");
    if (input.placeholder) add(input, getComputedStyle(input, "::placeholder"), input.placeholder);
    const edge = parse(getComputedStyle(input).borderTopColor);
    if (input.type === "search" || input.tagName === "SELECT") {
      const under = ground(input.parentElement);
      found.push([ratio(over(edge, under), under) / 3, 0, `border of ${input.id}`]);
    }
  }
  for (const bar of document.querySelectorAll("#overview:not([hidden]) rect")) {
    const under = ground(bar);
    found.push([ratio(over(parse(getComputedStyle(bar).fill), under), under) / 3, 0, "a bar"]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()"""
FOCUS = """(() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const [inside, box] = [element.closest(".card"), element.getBoundingClientRect()];
  return {
    name: element.id || (inside ? `${element.className || "mark"} of ${inside.dataset.index}` : element.tagName) ||
      element.tagName,
    parent: element.parentElement ? element.parentElement.id : "",
    outline: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    there: box.width > 0 && box.bottom > 0 && box.top < window.innerHeight,
  };
})()"""
SEEN = f"""JSON.stringify([{SHOWN}, calPage.settings, document.getElementById('command').textContent,
  [...document.querySelectorAll('.t')].map((t) => t.style.backgroundColor), document.documentElement.dataset.theme,
  [...document.querySelectorAll('.mark input')].map((box) => box.checked),
  [...document.querySelectorAll('#controls select, #controls input, .bar input, .bar select')].map((c) => c.value)])"""


@pytest.fixture(scope="module")
def report(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 40 rows of every kind, with the result of an audit."""
    folder = tmp_path_factory.mktemp("report")
    path = llava_directory(llava, folder)
    assert run(["audit", str(path), "--swap", "20", "--model_name_or_path", str(llava.directory)]) == 0
    assert run(["page", str(path), "--output", str(folder / "report.html"), "--title", "Deltas of forty rows"]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def samples(report: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_page_data(report)["samples"]
    return found


@browser_test
def test_it_opens_with_the_most_wrong_first_shaded_by_delta_and_says_what_delta_is(
    page: Page, report: Path, samples: list[dict[str, Any]]
) -> None:
    page.open(report)
    lowest = [samples[at]["numbers"]["min_delta"] for at in page.js(SHOWN)]
    defined = [value for value in lowest if value is not None]
    assert defined == sorted(defined)
    assert lowest[: len(defined)] == defined
    lead = page.js("document.querySelector('.lead').innerText.replace(/\\s+/g, ' ')")
    assert "its logit with the image minus its logit without" in lead
    assert page.js("document.getElementById('scale').textContent") == "the image speaks against-5.05.0for"
    assert page.js("document.getElementById('shade').value") == "score"
    card = page.js(SHOWN)[0]
    token = int(np.argmin([np.inf if delta is None else delta for delta in samples[card]["scores"]]))
    shade = page.js(f'document.querySelector(\'[data-index="{card}"] [data-token="{token}"]\').style.backgroundColor')
    assert shade.startswith("rgba(230, 60, 40") == (samples[card]["scores"][token] < -5 / 128)


@browser_test
def test_on_a_phone_the_first_sample_is_on_the_first_screen(page: Page, report: Path) -> None:
    page.resize(390, 844)
    page.open(report)
    first = "[...document.querySelectorAll('.card')].find((card) => !card.hidden)"
    word = page.js(f"{first}.querySelector('.t').getBoundingClientRect().bottom")
    assert page.js(f"{first}.getBoundingClientRect().top") < 500
    assert word < 700
    for view in VIEWS:
        page.open(report, f"view={view}&marks=0&limit=9")
        assert page.js("document.documentElement.scrollWidth") <= 390, view
    assert page.problems == []


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_control_has_the_contrast_of_wcag_aa(page: Page, report: Path, scheme: str) -> None:
    page.prefer(scheme)
    counted = 0
    for state in ("beta=0.05&alpha=0&limit=99", "shade=weight&beta=0.05&alpha=0&marks=1", "beta=0.5&alpha=0",
                  "view=overview", "view=measurement"):  # fmt: skip
        page.open(report, state)
        # A pointed token says its numbers in a box of its own colours.
        page.js("(() => { const t = document.querySelector('.t');"
                " t.dispatchEvent(new MouseEvent('mouseover', { bubbles: true })); })()")  # fmt: skip
        found = page.js(CONTRASTS)
        counted += len(found)
        assert found[0][0] >= 1.0, (state, found[:3])
    strengths = page.js("new Set([...document.querySelectorAll('.t')].map((t) => t.style.backgroundColor)).size")
    assert strengths > 3
    assert counted > 1000
    page.open(report)
    root = "getComputedStyle(document.documentElement).getPropertyValue('{}').trim()"
    outline = [page.js(root.format(name)) for name in ("--accent", "--ground", "--card")]
    assert min(ratio(outline[0], under) for under in outline[1:]) >= 3.0


def ratio(one: str, other: str) -> float:
    """WCAG contrast of two colours written `#rrggbb`."""
    lights = []
    for text in (one, other):
        parts = np.array([int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@browser_test
def test_everything_is_reached_by_the_keyboard_in_order_and_seen_there(
    page: Page, report: Path, samples: list[dict[str, Any]]
) -> None:
    page.open(report)
    order = page.js(SHOWN)
    stops = []
    for _ in range(40):
        page.key("Tab", 9)
        stop = page.js(FOCUS)
        if stop["name"] == "BODY" or stop["name"] in [item["name"] for item in stops if item["name"] != "SUMMARY"]:
            break
        stops.append(stop)
    names = [stop["name"] if stop["name"] != "SUMMARY" else f"summary of {stop['parent']}" for stop in stops]
    controls = ["shade", "alpha", "beta", "window", "search", "sort", "direction"]
    own = [f"mark of {order[0]}", f"words of {order[0]}"]
    assert names == ["skip", "theme", "tab-samples", "summary of weighting", *controls, "summary of select", *own]
    assert [stop["name"] for stop in stops if stop["outline"] < 2 or not stop["there"]] == []

    # From sample to sample and back; from word to word; Tab stays with the sample that was reached.
    page.js(f"document.querySelector('[data-index=\"{order[0]}\"] .words').focus()")
    for _ in range(3):
        page.key("ArrowDown", 40)
    page.key("ArrowUp", 38)
    assert page.js(FOCUS)["name"] == f"words of {order[2]}"
    assert page.js(FOCUS)["there"]
    page.key("ArrowRight", 39)
    assert page.js("document.querySelector('.t.at').closest('.card').dataset.index") == str(order[2])
    assert page.js("document.getElementById('tip').textContent").startswith("token ")
    page.key("Tab", 9, shift=True)
    assert page.js(FOCUS)["name"] == f"mark of {order[2]}"
    page.key(" ", 32, text=" ")
    assert page.js("document.querySelectorAll('.mark input:checked').length") == 1

    # The views by arrows; the order by a press; the skip link leads past all controls.
    page.js("document.getElementById('tab-samples').focus()")
    for view in ("overview", "measurement", "samples"):
        page.key("ArrowRight", 39)
        assert page.js("document.activeElement.id") == f"tab-{view}"
        assert [name for name in VIEWS if not page.js(f"document.getElementById('{name}').hidden")] == [view]
    page.js("document.getElementById('direction').focus()")
    page.key("Enter", 13, text="\r")
    down = [samples[at]["numbers"]["min_delta"] for at in page.js(SHOWN)]
    defined = [value for value in down if value is not None]
    assert defined == sorted(defined, reverse=True)
    page.js("document.getElementById('skip').focus()")
    page.key("Enter", 13, text="\r")
    assert page.js(FOCUS)["name"].startswith("words of")
    assert page.problems == []


@browser_test
def test_a_reload_and_a_shared_address_show_the_same(page: Page, report: Path) -> None:
    page.open(report)
    wanted = {"sort": "mean", "search": "the", "shade": "weight", "alpha": "0.5", "beta": "3", "window": "5",
              "status": "ok", "rule": "max_delta", "side": "above", "limit": "-2.5", "use": "drop"}  # fmt: skip
    for name, value in wanted.items():
        page.js(f"(() => {{ const c = document.getElementById('{name}'); c.value = '{value}';"
                " for (const kind of ['input', 'change']) c.dispatchEvent(new Event(kind)); })()")  # fmt: skip
    page.click("document.getElementById('direction')")
    page.click("document.getElementById('theme')")
    page.click("document.querySelector('.card:not([hidden]) .mark input')")
    page.js("new Promise((done) => setTimeout(done, 400))")
    before, address = page.js(SEEN), page.js("location.hash.slice(1)")
    assert len(page.js(SHOWN)) > 1
    page.open(report)
    assert page.js(SEEN) != before
    page.open(report, address)
    assert page.js(SEEN) == before
    page.call("Page.reload")
    page.js("new Promise((done) => setTimeout(done, 500))")
    assert page.js(SEEN) == before
    # A link that is followed in the open page, too, and one that says nothing true: what it was at first.
    page.js("location.hash = ''")
    page.js("new Promise((done) => setTimeout(done, 300))")
    assert page.js("calPage.settings.search") == ""
    page.open(report, "sort=__proto__&alpha=NaN&beta=1e999&window=2&status=<img src=x onerror=alert(1)>&view=none&at=-1"
                      "&marks=a.b&limit=x&theme=%00&down=7&constructor=1")  # fmt: skip
    settings = page.js("calPage.settings")
    first = {"sort": "min", "alpha": 1, "beta": 5, "window": 3, "status": "", "view": "samples", "at": "", "marks": ""}
    assert {name: settings[name] for name in first} == first
    assert settings["limit"] == ""
    assert page.problems == []


@browser_test
def test_axes_have_ticks_and_the_log_switch_draws_small_shares(page: Page, report: Path) -> None:
    page.open(report, "view=overview")
    counts = np.array(read_page_data(report)["histogram"]["counts"])
    shares = counts / counts.sum()
    first = "[...document.querySelectorAll('#plots figure:first-child {}')]"
    bars = f"{first.format('rect')}.map((bar) => Number(bar.getAttribute('height')))"
    ticks = "[...document.querySelectorAll('#plots figure:first-child text.{0}')].map((tick) => tick.textContent)"
    np.testing.assert_allclose(page.js(bars), 138 * shares / shares.max(), atol=1e-3)
    assert len(page.js(ticks.format("x"))) >= 5
    assert len(page.js(ticks.format("y"))) >= 3
    page.click("document.getElementById('log')")
    least = 10.0 ** np.floor(np.log10(shares[shares > 0].min()))
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log10(shares / least) / np.log10(shares.max() / least), 0)
    np.testing.assert_allclose(page.js(bars), 138 * expected, atol=1e-3)
    assert [float(tick.rstrip("%")) / 100 for tick in page.js(ticks.format("y"))] == pytest.approx(
        [least * 10**power for power in range(len(page.js(ticks.format("y"))))]
    )
    assert page.problems == []


@browser_test
def test_tables_and_the_swap_control_are_there_and_lead_to_their_samples(page: Page, report: Path) -> None:
    page.open(report, "view=overview&search=nothing-like-this")
    titles = page.js("[...document.querySelectorAll('#tables caption b')].map((title) => title.textContent)")
    grouped = [f"By {name}" for name in ("status", "turn", "source")]
    spoken = [f"Tokens the image speaks {side}" for side in ("against", "for")]
    assert titles == [*grouped, *spoken, *(f"{end} deltas of single tokens" for end in ("Lowest", "Highest"))]
    assert page.js("document.getElementById('audit').textContent").startswith("AUC 0.")
    row = page.js("document.querySelector('#tables a[data-row]').dataset.row")
    page.click("document.querySelector('#tables a[data-row]')")
    assert not page.js("document.getElementById('samples').hidden")
    assert page.js(FOCUS)["name"] == f"words of {row}"
    assert page.js(FOCUS)["there"]
    page.open(report, f"at={row}&sort=id")
    box = page.js(f"document.querySelector('[data-index=\"{row}\"]').getBoundingClientRect().top")
    assert 0 <= box < 900


@browser_test
def test_a_page_of_no_rows_and_one_of_a_huge_answer_stand(page: Page, report: Path, tmp_path: Path) -> None:
    data = read_page_data(report)
    long = next(sample for sample in data["samples"] if sample["scores"])
    long.update(id="long" * 500, tokens=["W" * 5000] * 40, scores=[-1e30] * 20 + [None] * 20, weights=[1.0] * 40,
                special=[], spans=[0], turns=[{"role": "assistant", "from": 0, "to": 40}])  # fmt: skip
    for samples in ([], [long]):
        (tmp_path / "page.html").write_text(page_text({**data, "samples": samples}), encoding="utf-8")
        for width in (390, 1200):
            page.resize(width, 844)
            page.open(tmp_path / "page.html")
            assert len(page.js(SHOWN)) == len(samples)
            assert page.js("document.documentElement.scrollWidth") <= width
    assert page.problems == []


@browser_test
def test_pages_of_odd_data_are_drawn_without_a_number_that_is_none(
    page: Page, directories: Directories, tmp_path: Path
) -> None:
    file = min(directories.normal.glob("*.parquet"))
    table = pq.read_table(file)
    at = table.schema.get_field_index("delta_logits")
    cases = {
        "no card": (directories.normal, "0"),
        "failed": (directories.failed, "500"),
        "one": (directories.normal, "1"),
    }
    for name, value in (("undefined", None), ("huge", 3e38), ("tiny", 1e-30), ("empty", 0.0)):
        deltas = [[value] * len(row) for row in table["delta_logits"].to_pylist()]
        changed = table.set_column(at, table.schema.field(at), pa.array(deltas, table.schema.types[at]))
        (tmp_path / name).mkdir()
        write(tmp_path / name / file.name, changed.slice(0, 0 if name == "empty" else len(changed)))
        cases[name] = tmp_path / name, "500"
    model = str(directories.family.directory)
    for name, (path, count) in cases.items():
        report = tmp_path / f"{name}.html"
        assert run(["page", str(path), "--output", str(report), "--tokenizer", model, "--samples", count]) == 0
        for state in ("", "view=overview&log=1", "limit=0&marks=0.1.99999", "sort=weight&down=1&shade=weight&at=99999"):
            page.open(report, state)
            page.js("(() => { for (const range of document.querySelectorAll('input[type=range]')) {"
                    " range.value = range.max; range.dispatchEvent(new Event('input')); } })()")  # fmt: skip
            page.frame()
            assert page.js("document.body.innerText.match(/NaN|Infinity|null/g)") is None, (name, state)
            parts = "[...document.querySelectorAll('svg *')]"
            drawn = f"{parts}.flatMap((part) => [...part.attributes].map((own) => own.value))"
            assert page.js(f"{drawn}.filter((value) => /NaN|Infinity|undefined/.test(value))") == [], (name, state)
    assert page.problems == []
