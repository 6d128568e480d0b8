"""A sample's row shows its words shaded, and finds the tokenizer of what measured it by itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotated_data import annotate
from browser import Page, browser_test
from cal_pipeline.inspect import load_annotated, sample_frame, show_words, token_frame
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.metadata import Carry
from conftest import Family
from hub_server import HubServer
from inspect_data import Directories
from inspected_data import conversations, llava_directory, measured
from pages import HOSTILE
from tiny_models import sample_image


def shaded(text: str) -> list[tuple[str, str]]:
    """(text, title) of every shaded word of a fragment, which must be well formed."""
    found: list[tuple[str, str]] = []
    opened: list[str] = []
    titles: list[str | None] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag in ("div", "style", "h1", "p", "img", "span"), tag
            if tag != "img":
                opened.append(tag)
                titles.append(dict(attrs).get("title"))

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag
            titles.pop()

        def handle_data(self, data: str) -> None:
            if titles and titles[-1] is not None:
                found.append((data, titles[-1]))

    Reader().feed(text)
    assert not opened
    return found


@pytest.fixture(scope="module")
def annotated(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run report that leads to the reference."""
    return llava_directory(llava, tmp_path_factory.mktemp("frames"), 20)


def test_a_row_and_show_words_shade_the_answer_s_own_words_with_their_deltas(annotated: Path) -> None:
    frame = load_annotated(annotated)
    tokens = token_frame(frame)
    for index in frame.index[frame["status"] == "ok"]:
        own = tokens[tokens["row"] == index]
        html = show_words(frame.loc[index])._repr_html_()
        assert html == frame.loc[index]._repr_html_()
        words = shaded(html)
        said = " ".join(turn["content"] for turn in frame.loc[index, "messages"] if turn["role"] == "assistant")
        assert "".join("".join(text for text, _ in words).replace("</s>", "").split()) == "".join(said.split())
        pairs = zip(own["delta"], own["weight"], strict=True)
        figures = [f"{delta:.3f}, weight {weight:.3f}" for delta, weight in pairs]
        assert [title.partition(" delta ")[2] for _, title in words] == figures
    text = repr(show_words(frame.loc[frame.index[frame["status"] == "ok"][0]]))
    assert "assistant: " in text
    assert re.search(r"\w\(-?\d+\.\d\)", text)
    failed = frame.index[frame["status"] != "ok"][0]
    assert "".join(frame.loc[failed, "error"].split()) in "".join(repr(show_words(frame.loc[failed])).split())
    assert shaded(frame.loc[failed]._repr_html_()) == []


def test_what_pandas_makes_of_a_frame_still_knows_its_tokenizer(annotated: Path, tmp_path: Path) -> None:
    frame = load_annotated(annotated, columns=["sample_id", "status", "label_ids", "label_positions", "delta_logits"])
    row = frame.index[frame["status"] == "ok"][0]
    frame.to_parquet(tmp_path / "frame.parquet")
    again = pd.read_parquet(tmp_path / "frame.parquet")
    wanted = shaded(show_words(frame.loc[row])._repr_html_())
    assert len(wanted) > 1
    for part in (frame.query("status == 'ok'").iloc[0], frame[frame.index == row].squeeze(), next(
        item for at, item in frame.iterrows() if at == row), frame.set_index("sample_id").iloc[row], again.loc[row],
        frame.sort_values("sample_id").loc[row],
    ):  # fmt: skip
        assert shaded(show_words(part)._repr_html_()) == wanted
    pd.testing.assert_frame_equal(token_frame(again), token_frame(frame))
    # A column, a table of samples and a row without lists are shown as pandas shows them.
    assert frame["sample_id"]._repr_html_() is None
    assert frame[["sample_id", "status"]].loc[row]._repr_html_() is None
    assert "<table" in frame._repr_html_()


def test_what_is_joined_to_a_frame_takes_nothing_from_what_it_knows(annotated: Path) -> None:
    frame = load_annotated(annotated)
    samples = sample_frame(frame)[["sample_id", "mean_delta"]]
    row = frame.index[frame["status"] == "ok"][0]
    joined = (
        frame.join(samples["mean_delta"]),
        frame.join(samples[["mean_delta"]]),
        frame.merge(samples, on="sample_id"),
        pd.concat([frame, samples["mean_delta"]], axis=1),
        pd.concat([frame, frame.iloc[:1]], ignore_index=True),
    )
    for wider in joined:
        assert show_words(wider.loc[row])._repr_html_() == frame.loc[row]._repr_html_()
        assert len(token_frame(wider)) >= len(token_frame(frame))
    # Tokens of who knows what, beside known ones or in their place, are not spelled by what measured those.
    unknown, other = pd.DataFrame(frame), frame.copy()
    other.attrs = {name: {**known, "tokenizer_digest": "other"} for name, known in frame.attrs.items()}
    bare = frame[["sample_id"]]
    for mixed in (pd.concat([frame, unknown]), pd.concat([frame, other]), bare.merge(unknown, on="sample_id")):
        with pytest.raises(ConfigError, match="Give tokenizer="):
            token_frame(mixed)
    with pytest.raises(ConfigError, match="digest other there"):
        token_frame(bare.merge(other, on="sample_id"))


def test_what_a_merge_renamed_is_missed_by_name_and_the_join_that_the_words_give_loses_nothing(annotated: Path) -> None:
    frame = load_annotated(annotated)
    samples = sample_frame(frame)
    row = frame.index[frame["status"] == "ok"][0]
    shown = show_words(frame.merge(samples, on="sample_id").loc[row])
    names = ("status", "error", "template_inputs", "images")
    said = f"this row lacks {', '.join(f'{name} (there is {name}_x)' for name in names)}: merged with a frame"
    assert said in " ".join(repr(shown).split())
    assert said in shown._repr_html_()
    joined = frame.join(samples.drop(columns=frame.columns, errors="ignore"))
    assert {*joined.columns} == {*frame.columns, *samples.columns}
    assert show_words(joined.loc[row])._repr_html_() == show_words(frame.loc[row])._repr_html_()


def test_an_image_that_a_frame_left_in_its_shards_is_shown_and_else_the_words_say_what_reads_it(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directories.normal.parent)
    frame = load_annotated(directories.normal.name)
    monkeypatch.undo()  # The frame outlives the working directory that its path began in.
    whole = load_annotated(directories.normal, columns=[*frame.columns])
    frame.attrs["cal.measured_with"]["image_folder"] = None  # The shards alone have them.
    rows = frame.index[(frame["status"] == "ok") & frame["images"].map(len).eq(1)]
    tokenizer = directories.family.directory
    for row in rows[[0, -1]]:
        shown = show_words(frame.loc[row], tokenizer)
        assert shown._repr_html_() == show_words(whole.loc[row], tokenizer)._repr_html_()
        assert "data:image/jpeg" in shown._repr_html_()
        assert re.search(r"\n\[image \S.*, \d+ x \d+ pixels\]\n", repr(shown))
        left = repr(show_words(frame.drop(columns="sample_key").loc[row], tokenizer))
        assert re.search(r"\[image [^ ]+: left out of this row; load_annotated with 'images' among columns=", left)
        assert " bytes" not in left
    # As `datasets` has it.
    values = {**whole.loc[rows[0]], "images": [Image.new("RGB", (5, 4))]}
    assert "[image 0, 5 x 4 pixels]" in repr(show_words(values, tokenizer))


@pytest.mark.parametrize("carry", ["paths", "images"])
def test_each_row_shows_the_image_of_its_own_folder(llava: Family, tmp_path: Path, carry: Carry) -> None:
    sizes = {"train": (31, 32), "test": (41, 42)}
    data = [conversations(tmp_path / name, ["An answer."], ids=[name]) for name in sizes]
    data = [path.rename(path.with_name(f"{path.parent.name}.json")) for path in data]
    folders = [str(path.parent / "images") for path in data]
    for folder, size in zip(folders, sizes.values(), strict=True):  # The same path, words and hence key.
        sample_image(0, size).save(Path(folder) / "0.png")
    shards = plan_shards([str(path) for path in data], folders)
    path = annotate(tmp_path / "annotated", shards, llava.encoder, llava.model, carry=carry)
    frame = load_annotated(path)
    assert frame["sample_key"].nunique() == 1
    frame.to_parquet(tmp_path / "frame.parquet")
    for rows in (
        frame,
        pd.read_parquet(tmp_path / "frame.parquet"),
        load_annotated(path, columns=[*frame.columns]),
        load_annotated(path, filter="sample_id = 'train'"),
    ):
        for _, row in rows.iterrows():
            width, height = sizes[row["sample_id"]]
            assert f"[image 0.png, {width} x {height} pixels]" in repr(show_words(row, llava.directory))
            assert row["images"][0]["folder"] == str(tmp_path / row["sample_id"] / "images")


def test_a_row_without_some_token_columns_says_which(annotated: Path) -> None:
    row = load_annotated(annotated, columns=["sample_id", "label_ids", "delta_logits"]).loc[0]
    assert "words are not shown: the sample lacks [&#x27;label_positions&#x27;]" in row._repr_html_()


def test_what_pandas_says_of_the_columns_is_shown_as_pandas_shows_it(annotated: Path) -> None:
    frame = load_annotated(annotated)
    of_columns = (frame.dtypes, frame.count(), frame.isna().sum(), frame.notna().all(), frame.memory_usage(),
                  frame.map(type).iloc[0], frame[["status", "label_ids"]].count())  # fmt: skip
    for said in (*of_columns, frame.astype(str).iloc[0], frame.explode("label_ids").iloc[0]):
        assert type(said) is type(frame.iloc[0])
        assert said._repr_html_() is None
    wrong = ((frame.count(), "20"), (frame.explode("label_ids").iloc[0], r"\S*\d+\S*"))
    for said, value in wrong:
        with pytest.raises(ConfigError, match=rf"^label_ids of this row is {value}, not a list: .*frame\.loc\[0\]"):
            show_words(said)
    with pytest.raises(ConfigError, match=r"which a row of load_annotated has \(frame\.loc\[0\]\)"):
        show_words(sample_frame(frame).iloc[0])


def test_token_columns_without_lists_are_refused_by_name(annotated: Path, tmp_path: Path) -> None:
    frame = load_annotated(annotated)
    frame.to_csv(tmp_path / "frame.csv")
    for wrong in (pd.read_csv(tmp_path / "frame.csv"), frame.explode(["label_ids", "label_positions"])):
        for use in (sample_frame, token_frame):  # Before a tokenizer is asked for.
            with pytest.raises(ConfigError, match=r"^the column label_ids holds no lists of numbers .*, CSV does not$"):
                use(wrong)


def test_directories_of_one_measurement_together_show_the_images_of_each(directories: Directories) -> None:
    frame = load_annotated(directories.normal)
    split = [frame[:6].copy(), frame[6:].copy()]
    files = frame.attrs["cal.stored_in"]
    for part, own in zip(split, ([*files][:1], [*files][1:]), strict=True):
        part.attrs["cal.stored_in"] = {file: files[file] for file in own}
    both = pd.concat(split)
    assert both.attrs == frame.attrs
    for part in split:  # What each knew is left alone.
        assert part.attrs["cal.stored_in"] != files


def test_a_row_of_anything_else_needs_the_tokenizer_and_says_so(annotated: Path, llava: Family) -> None:
    files = sorted(annotated.glob("*.parquet"))
    values = next(row for row in pq.read_table(files[0]).to_pylist() if row["status"] == "ok")
    own = load_annotated(annotated, filter=f"sample_id = '{values['sample_id']}'").iloc[0]
    wanted = shaded(show_words(own)._repr_html_())
    assert shaded(show_words(values, llava.directory)._repr_html_()) == wanted
    series = pd.read_parquet(files[0]).query("status == 'ok'").iloc[0]
    assert shaded(show_words(series, llava.directory)._repr_html_()) == wanted
    for sample in (values, series):
        with pytest.raises(ConfigError, match="Give tokenizer= with the directory of the reference"):
            show_words(sample)
    for wrong, name in ((pd.read_parquet(files[0]), "DataFrame"), (own.to_frame(), "AnnotatedFrame"), (3, "int")):
        with pytest.raises(ConfigError, match=rf"frame\.loc\[0\], not what is of type {name}$"):
            show_words(wrong)  # type: ignore[arg-type]
    for name, value in (("alpha", "1"), ("window", "3")):
        with pytest.raises(ConfigError, match=f"{name} must be a .*number.* got {value!r}"):
            show_words(values, llava.directory, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"lacks \['label_ids'"):
        show_words({"sample_id": "a"})
    with pytest.raises(ConfigError, match="by is 'score' or 'weight', got 'loss'"):
        show_words(values, llava.directory, by="loss")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="odd"):
        show_words(values, llava.directory, window=2)


def test_a_reference_that_is_gone_is_one_error_with_the_way_out(
    annotated: Path, llava: Family, directories: Directories, tmp_path: Path
) -> None:
    place = tmp_path / "annotated"
    shutil.copytree(annotated, place)
    (report,) = (place / ".cal" / "reports").glob("run-*.json")
    report.write_text(json.dumps({"config": {"model_name_or_path": str(tmp_path / "gone")}}))
    frame = load_annotated(place)
    row = frame.loc[frame.index[frame["status"] == "ok"][0]]
    for use in (lambda: token_frame(frame), lambda: show_words(row)):
        with pytest.raises(ConfigError, match="Give tokenizer= with the directory of llava") as refused:
            use()
        assert f"it was at {tmp_path / 'gone'}, where no directory is now" in str(refused.value)
    # A notebook shows the row as pandas does, and the reason; of a damaged row, too.
    damaged = load_annotated(annotated).loc[row.name].copy()
    damaged["delta_logits"] = damaged["delta_logits"][1:]
    assert "words are not shown: row 0 has" in damaged._repr_html_()
    html = row._repr_html_()
    assert "words are not shown: which tokenizer" in html
    assert shaded(html.replace("<pre>", "<p>").replace("</pre>", "</p>")) == []
    assert len(shaded(show_words(row, llava.directory)._repr_html_())) > 1
    assert len(token_frame(frame, str(llava.directory))) == len(token_frame(load_annotated(annotated)))
    with pytest.raises(ConfigError, match="tokenizer= no/such: no such directory"):
        token_frame(frame, "no/such")


def test_a_reference_of_the_hub_is_found_by_its_name_at_the_commit_that_measured(llava: Family, tmp_path: Path) -> None:
    tokenizer = (llava.directory / "tokenizer.json").read_bytes()
    code = """
import sys
from cal_pipeline.inspect import load_annotated, token_frame
frame = load_annotated(sys.argv[1])
print("".join(token_frame(frame)["token"]), frame.loc[0]._repr_html_().count('title="'), len(token_frame(frame)))
"""
    with HubServer() as hub:
        commit = hub.commit("org/reference", {"tokenizer.json": tokenizer}, kind="models")
        hub.commit("org/reference", {"tokenizer.json": b"{}"}, kind="models")  # Changed since.
        data = conversations(tmp_path / "data", ["An answer."])
        path = measured(llava, tmp_path / "annotated", [data], tmp_path / "data" / "images", carry="paths",
                        model_id="org/reference", revision=commit)  # fmt: skip
        shutil.rmtree(path / ".cal" / "reports")
        environment = {**os.environ, **hub.environment(HF_HUB_CACHE=str(tmp_path / "cache"))}
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spelled, words, tokens = done.stdout.rsplit(maxsplit=2)
    assert spelled.removesuffix("</s>").strip() == "An answer."
    assert words == tokens


def test_text_of_the_dataset_is_text_in_a_notebook_too(llava: Family, tmp_path: Path) -> None:
    data = conversations(tmp_path / "data", HOSTILE, ids=HOSTILE)
    path = measured(llava, tmp_path / "annotated", [data], tmp_path / "data" / "images", carry="paths")
    frame = load_annotated(path)
    for index in frame.index:
        html = frame.loc[index]._repr_html_()
        assert "".join(text for text, _ in shaded(html)).removesuffix("</s>").strip() == HOSTILE[index].strip()
        assert html.count("data:image/jpeg") == 1, "the image's file is found where the shards say"
        assert "\x07" not in repr(show_words(frame.loc[index]))


def test_undefined_deltas_and_shades_by_weight(annotated: Path) -> None:
    frame = load_annotated(annotated)
    row = frame.loc[frame.index[frame["status"] == "ok"][0]].copy()
    row["delta_logits"] = np.array([np.nan, *row["delta_logits"][1:]], np.float32)
    html = show_words(row)._repr_html_()
    assert "delta undefined" in shaded(html)[0][1]
    assert 't undefined"' in html
    assert "weighs least" in show_words(row, by="weight")._repr_html_()


@pytest.mark.full
def test_a_real_notebook_shows_the_words_once(annotated: Path) -> None:
    cells = [
        f"from cal_pipeline.inspect import load_annotated, show_words\nframe = load_annotated({str(annotated)!r})\n"
        "row = frame.loc[frame.index[frame['status'] == 'ok'][0]]\nrow",
        "show_words(row)",
        "print(show_words(row))",
        "frame['sample_id']",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120).execute()
    (row,), (words,), (printed,), (column,) = (cell.outputs for cell in notebook.cells)
    assert len(shaded(row.data["text/html"])) > 1
    assert words.data["text/html"] == row.data["text/html"]
    assert "assistant: " in words.data["text/plain"]
    assert printed.name == "stdout"
    assert printed.text.strip() == words.data["text/plain"].strip()
    assert "text/html" not in column.data


@browser_test
def test_shaded_words_can_be_read_on_light_and_dark_notebooks(page: Page, annotated: Path, tmp_path: Path) -> None:
    frame = load_annotated(annotated)
    row = frame.loc[frame.index[frame["status"] == "ok"][0]].copy()
    row["delta_logits"] = np.where(np.arange(len(row["delta_logits"])) % 2, 50, -50).astype(np.float32)
    fragment = show_words(row)._repr_html_()
    for ground, text in (("#ffffff", "#000000"), ("#111111", "#ffffff")):
        (tmp_path / "notebook.html").write_text(
            f'<!doctype html><meta charset="utf-8"><body style="background:{ground};color:{text}">{fragment}'
        )
        page.open(tmp_path / "notebook.html")
        found = page.js(CONTRAST.replace("GROUND", json.dumps(ground)))
        assert len(found) == len(row["label_ids"])
        assert min(found) >= 4.5
    assert page.problems == []


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = GROUND.match(/[0-9a-f]{2}/g).map((part) => parseInt(part, 16));
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.slice(0, 3).map((c) => linear(c / 255)).reduce(
    (sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  return [...document.querySelectorAll(".t")].map((span) => {
    const style = getComputedStyle(span);
    const [r, g, b, a = 1] = parse(style.backgroundColor);
    const under = [r, g, b].map((part, at) => part * a + ground[at] * (1 - a));
    const [high, low] = [light(parse(style.color)), light(under)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  });
})()"""
