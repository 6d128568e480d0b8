from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.page import page_text, read_page_data
from cal_pipeline.inspect.frames import load_annotated, token_frame
from cal_pipeline.inspect.page.chosen_rows import ChosenRows, Pick
from cal_pipeline.inspect.page.page_data import MAX_THUMBNAIL_BYTES, thumbnail, turn_parts
from cal_pipeline.inspect.tables.reading import open_paths
from cal_schemas.sample import ImageRef, Turn
from conftest import Family
from inspect_data import Directories
from inspected_data import conversations, llava_directory, measured, parquet_directory
from pages import HOSTILE, python_weights
from tiny_models import sample_image


def test_the_page_holds_the_directory_s_rows_with_deltas_and_weights(llava: Family, tmp_path: Path) -> None:
    path = llava_directory(llava, tmp_path)
    assert run(["page", str(path), "--output", str(tmp_path / "out" / "report.html"), "--samples", "100"]) == 0
    data = read_page_data(tmp_path / "out" / "report.html")
    table = pq.read_table(path)
    assert len(data["samples"]) == len(table) == data["rows"]
    for sample, row in zip(data["samples"], table.to_pylist(), strict=True):
        assert (sample["id"], sample["status"], sample["error"]) == (row["sample_id"], row["status"], row["error"])
        np.testing.assert_allclose(np.array(sample["scores"], float), row["delta_logits"], atol=1e-5)
        np.testing.assert_allclose(sample["weights"], python_weights(sample, 1.0, 5.0, 3), atol=1e-4)
        said = [turn["content"] for turn in row["messages"] or [] if turn["role"] == "assistant"]
        spoken = ["".join(sample["tokens"][t["from"] : t["to"]]) for t in sample["turns"] if "from" in t]
        if row["status"] == "ok":
            assert [text.removesuffix("</s>").strip() for text in spoken] == [text.strip() for text in said]
            assert all("uri" in image for image in sample["images"])
        else:
            assert not sample["tokens"]
    counts = data["histogram"]["counts"]
    assert sum(counts) == sum(map(len, table["delta_logits"].to_pylist()))


def test_images_that_cannot_be_read_are_counted(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--tokenizer", str(directories.family.directory), "--image_folder", str(tmp_path / "gone")]
    assert run(["page", str(directories.paths), "--output", str(tmp_path / "report.html"), *flags]) == 0
    images = [image for sample in read_page_data(tmp_path / "report.html")["samples"] for image in sample["images"]]
    assert f"{len(images)} of {len(images)} images cannot be read" in capsys.readouterr().out


def test_text_of_the_dataset_cannot_leave_its_script_element(llava: Family, tmp_path: Path) -> None:
    data = conversations(tmp_path / "data", HOSTILE, ids=HOSTILE)
    path = measured(llava, tmp_path / "annotated", [data], tmp_path / "data" / "images", carry="paths")
    title = "</title><script>alert(1)</script>"
    assert run(["page", str(path), "--output", str(tmp_path / "report.html"), "--title", title]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script", text)) == len(re.findall(r"</script", text)) == 2
    assert not set(text) & {"\u2028", "\u2029", "\u202e"}
    stored = read_page_data(tmp_path / "report.html")
    assert [sample["id"] for sample in stored["samples"]] == list(HOSTILE)
    for sample, answer in zip(stored["samples"], HOSTILE, strict=True):
        assert "".join(sample["tokens"]).removesuffix("</s>").strip() == answer.strip()


def test_the_policy_names_the_page_s_own_script_and_style_and_nothing_else() -> None:
    text = page_text({"title": "t", "score": {"noun": "n", "lead": "l"}})
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"\sstyle=|\son\w+=", text.split("<script")[0].split("</style>")[1])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def choose(
    means: np.ndarray, named: np.ndarray, pick: Pick, count: int, seed: int, *, lowest: np.ndarray | None = None
) -> dict[int, list[str]]:
    """As a page of such rows would, two rows at a time; rows without a mean failed."""
    chosen = ChosenRows(named, pick, count, seed)
    for first in range(0, len(means), 2):
        part = slice(first, first + 2)
        chosen.add_keys(first, np.isnan(means[part]), means[part], (means if lowest is None else lowest)[part])
    return {row: [str(order) for order in orders] for row, orders in chosen.why().items()}


def test_rows_are_picked_as_asked() -> None:
    means = np.array([3.0, np.nan, -1.0, 2.0, np.nan, 5.0])
    every = np.ones(len(means), bool)
    assert [*choose(means, every, "first", 2, 0)] == [0, 1]
    assert [*choose(means, every, "lowest", 2, 0)] == [2, 3]
    assert [*choose(means, every, "highest", 9, 0)] == [0, 2, 3, 5]
    drawn = choose(means, every, "random", 3, 1)
    assert len(drawn) == 3
    assert drawn == choose(means, every, "random", 3, 1)
    assert [*choose(means, means > 2, "lowest", 9, 0)] == [0, 5]
    assert choose(means, every, "worst", 0, 0) == {}


def test_the_worst_rows_of_all_are_on_a_page_beside_a_lot_and_failed_ones() -> None:
    rng = np.random.default_rng(0)
    means, lowest = rng.normal(size=3001), rng.normal(-3.0, 2.0, size=3001)
    means[5::10] = lowest[5::10] = np.nan
    found = choose(means, np.ones(3001, bool), "worst", 100, 7, lowest=lowest)
    assert len(found) == 100
    by = {name: {row for row, why in found.items() if name in why} for name in ("word", "lowest", "random", "failed")}
    assert by["failed"] == set(range(5, 105, 10))
    assert len(by["random"]) == 20
    for name, keys, least in (("lowest", means, 20), ("word", lowest, 50)):
        # Every row with the k lowest of all 3,001 is here, and the next one is not.
        order = np.argsort(np.where(np.isnan(keys), np.inf, keys), kind="stable").tolist()
        assert by[name] == set(order[: len(by[name])])
        assert len(by[name]) >= least
        assert order[len(by[name])] not in found
    # The lot of a row depends on its number and the seed alone: a lower count draws among the same.
    fewer = choose(means, np.ones(3001, bool), "worst", 50, 7, lowest=lowest)
    assert {row for row, why in fewer.items() if "random" in why} < by["random"]


def test_room_that_rows_without_deltas_leave_is_filled() -> None:
    means = np.full(50, np.nan)
    means[3] = -1.0
    assert [*choose(means, np.ones(50, bool), "worst", 20, 0)][:4] == [0, 1, 2, 3]
    assert len(choose(means, np.ones(50, bool), "worst", 20, 0)) == 20
    assert len(choose(means, np.ones(50, bool), "worst", 80, 0)) == 50


def test_thumbnails_are_small_and_made_anew(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 480, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(noise).save(tmp_path / "noise.png")
    found = thumbnail(ImageRef(path="noise.png"), tmp_path, 2000)
    assert found["uri"].startswith("data:image/jpeg;base64,")
    assert len(found["uri"]) <= MAX_THUMBNAIL_BYTES * 4 / 3 + 40
    sample_image(0).save(tmp_path / "small.png")
    assert thumbnail(ImageRef(path="small.png"), tmp_path, 320)["uri"].startswith("data:image/png;base64,")
    assert "not a file" in thumbnail(ImageRef(path="gone.png"), tmp_path, 320)["problem"]
    assert "cannot be decoded" in thumbnail(ImageRef(data=b"<svg onload=alert(1)>"), None, 320)["problem"]


def test_every_token_is_in_one_part_of_the_conversation() -> None:
    said = [("user", "<image>\nA?"), ("assistant", "one"), ("assistant", " "), ("user", "B?"), ("assistant", "two"),
            ("assistant", "cut off")]  # fmt: skip
    messages = [Turn(role=role, content=content) for role, content in said]
    parts = turn_parts(messages, np.array([1, 1, 2]))
    assert [(part["role"], part.get("from"), part.get("to"), part.get("text")) for part in parts] == [
        ("user", None, None, "[image]\nA?"), ("assistant", 0, 2, None), ("assistant", None, None, " "),
        ("user", None, None, "B?"), ("assistant", 2, 3, None), ("assistant", None, None, "cut off"),
    ]  # fmt: skip
    assert turn_parts([], np.array([1, 2, 2])) == [{"role": "assistant", "from": 0, "to": 3}]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--beta", "inf"], "finite"),
        (["--window", "2"], "odd"),
        (["--alpha", "6"], "alpha <= beta"),
        (["--samples", "-1"], "--samples: must be 0 or more, got -1"),
    ],
)
def test_a_page_that_makes_no_sense_is_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["page", str(tmp_path), "--output", str(tmp_path / "a.html"), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_page_of_a_shard_alone_and_of_a_sidecar_shows_the_same_words(llava: Family, tmp_path: Path) -> None:
    whole = parquet_directory(llava, tmp_path, count=4)
    sidecar = measured(llava, tmp_path / "sidecar", [tmp_path / "data" / "a.parquet"], carry="none")
    assert "images" not in pq.read_schema(sidecar / "a.parquet").names
    assert run(["page", str(whole / "a.parquet"), "--output", str(tmp_path / "one.html")]) == 0
    assert run(["page", str(sidecar), "--output", str(tmp_path / "two.html")]) == 0
    assert read_page_data(tmp_path / "one.html")["samples"] == read_page_data(tmp_path / "two.html")["samples"]


def test_tables_are_those_of_pandas_over_all_rows(llava: Family, tmp_path: Path) -> None:
    path = llava_directory(llava, tmp_path)
    assert run(["page", str(path), "--output", str(tmp_path / "report.html"), "--samples", "5"]) == 0
    data = read_page_data(tmp_path / "report.html")
    assert len(data["samples"]) == 5
    tables = {table["title"]: table["rows"] for table in data["tables"]}
    frame = load_annotated(path)
    tokens = token_frame(frame, llava.directory)
    statuses = frame["status"].value_counts()
    assert {row[0]: int(row[1]) for row in tables["By status"]} == dict(statuses)
    assert {row[0]: row[2] for row in tables["By status"]} == {
        name: f"{count / len(frame):.1%}" for name, count in statuses.items()
    }
    for status, *_, example in tables["By status"]:
        errors = frame.loc[frame["status"] == status, "error"].dropna()
        assert example == (" ".join(errors.iloc[0].split()) if len(errors) else "")
    of_turn = tokens.groupby("turn")["delta"]
    assert [[row[1], row[2], row[6]] for row in tables["By turn"]] == [
        [f"{len(deltas):,}", f"{deltas.mean():.2f}", f"{(deltas < 0).mean():.1%}"] for _, deltas in of_turn
    ]
    (source,) = tables["By source"]
    deltas = tokens["delta"]
    figures = [f"{deltas.mean():.2f}", f"{deltas.min():.2f}", f"{(deltas < 0).mean():.1%}"]
    assert source[1:4] == [f"{count:,}" for count in (len(frame), statuses["ok"], len(tokens))]
    assert source[4:] == figures
    often = tokens.groupby("token_id")["delta"].agg(["mean", "size"]).query("size >= 5").sort_values("mean")
    shown = tables["Tokens the image speaks against"]
    assert [row[1] for row in shown] == [f"{mean:.2f}" for mean in often["mean"][:15]]
    lowest = tokens.sort_values("delta").head(15)
    assert [row[0] for row in tables["Lowest deltas of single tokens"]] == [f"{delta:.2f}" for delta in lowest["delta"]]
    assert [row[1]["row"] for row in tables["Lowest deltas of single tokens"]] == lowest["row"].tolist()


SWAP = {"samples": 40, "skipped": 0, "auc": 0.845, "win_share": 0.8, "mean_own": 0.5, "mean_other": -0.25}


def test_the_swap_control_of_an_audit_is_shown_and_that_of_another_measurement_is_not(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet_directory(llava, tmp_path, count=2)
    command = ["page", str(path), "--output", str(tmp_path / "report.html")]
    kept, other = path / ".cal" / "audit.json", tmp_path / "other.json"
    fingerprint = open_paths(path).spec.fingerprint()

    def shown(*flags: str) -> dict[str, Any] | None:
        assert run([*command, *flags]) == 0
        found: dict[str, Any] | None = read_page_data(tmp_path / "report.html")["audit"]
        return found

    assert shown() is None
    figures = {"passed": True, "rows": 7, "fingerprint": fingerprint, "swap": SWAP}
    kept.write_text(json.dumps(figures))
    found = shown()
    assert found
    assert found["fit"]
    assert found["lines"][0].startswith("AUC 0.845: the chance")
    assert "80.0% of 40: mean delta 0.50 with its own, -0.25 with another's" in found["lines"][1]
    other.write_text(json.dumps({**figures, "swap": {**SWAP, "auc": 0.55, "samples": 12}}))
    found = shown("--audit", str(other))
    assert found
    assert not found["fit"]
    assert "12 samples give a rough figure only" in found["lines"][2]
    assert "hardly tells the right image" in found["lines"][3]
    other.write_text(json.dumps({**figures, "swap": None}))
    found = shown("--audit", str(other))
    assert found
    assert "--swap 0" in found["lines"][0]
    wrong = ["{", "[]", "{}", json.dumps({**figures, "fingerprint": "another"}), json.dumps({**figures, "swap": {}})]
    for text in wrong:
        kept.write_text(text)
        caplog.clear()
        assert shown() is None
        assert "is left out" in caplog.text
        other.write_text(text)
        assert run([*command, "--audit", str(other)]) == 2
        assert f"--audit {other}: " in capsys.readouterr().err
    assert run([*command, "--audit", str(tmp_path / "none.json")]) == 2
