"""Every subcommand that shows or weighs by a score and a map: the numbers are training's, and the names are right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from browser import Page, browser_test
from cal_pipeline.inspect import load_annotated, sample_frame, show_words, token_frame
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.page import read_page_data
from cal_pipeline.inspect.commands.plot import count_groups
from cal_pipeline.inspect.page.plots import score_figure
from cal_pipeline.inspect.tables.reading import open_paths
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map
from cal_schemas.scores import SCORES, Score
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.weighting import Weighting
from cal_trainer.run.bounds import resolve_bounds
from conftest import Family
from inspected_data import measured
from tiny_data import write_llava_json


@pytest.fixture(scope="module")
def annotated(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows, bad and text-only ones and several turns among them, with what every cached score reads."""
    folder = tmp_path_factory.mktemp("scores")
    data, images = write_llava_json(folder / "llava", 24)
    extra = ("logprobs", "kl", "entropy")
    return measured(llava, folder / "annotated", [data], images, carry="paths", extra_columns=extra)


@pytest.fixture(scope="module")
def plain(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    data, images = write_llava_json(folder / "llava", 24)
    return measured(llava, folder / "annotated", [data], images, carry="paths")


def trained(frame: pd.DataFrame, score: Score, **weighting: Any) -> np.ndarray:
    """Weights that training gives the tokens of these rows, one row at a time."""
    found = []
    for _, row in frame[frame["status"] == "ok"].iterrows():
        places = torch.tensor(row["label_positions"].tolist())
        labels = torch.full((1, int(places[-1]) + 2), IGNORE_INDEX)
        labels[0, places] = torch.tensor(row["label_ids"].tolist())
        columns = {name: torch.full(labels.shape, torch.nan) for name in SCORES[score].cached}
        for name, values in columns.items():
            values[0, places] = torch.tensor(row[name].tolist())
        weights = Weighting(**weighting)(SCORES[score].compute(columns), labels)
        found.append(weights[0, places].numpy())
    return np.concatenate(found)


WEIGHTED: list[tuple[Score, str, dict[str, Any]]] = [
    ("delta_logit", "clamp", {}),
    ("delta_logprob", "clamp", {"alpha": 0.0, "beta": 0.5, "window": 5}),
    ("kl", "top_share=0.4", {}),
    ("js", "linear", {"window": 1}),
    ("ratio", "softmax=0.5", {}),
    ("anchored_entropy", "top_share=0.2", {"alpha": 0.2}),
    ("kl_reverse", "pgpo=0.4", {}),
    ("delta_logprob", "inverse", {"alpha": 0.0, "pool": "joined"}),
]


@pytest.mark.parametrize(("score", "rule", "options"), WEIGHTED)
def test_a_frame_s_weights_are_those_of_training(
    annotated: Path, llava: Family, score: Score, rule: str, options: dict[str, Any]
) -> None:
    frame = load_annotated(annotated)
    tokens = token_frame(frame, llava.directory, score=score, map=rule, **options)
    expected = trained(frame, score, map=rule, **options)
    np.testing.assert_allclose(tokens["weight"], expected, atol=1e-6)
    assert len(set(expected.round(4))) > 1
    name = "delta" if score == "delta_logit" else score
    samples = sample_frame(frame, score=score, map=rule, **options)
    by_row = tokens.groupby("row")
    np.testing.assert_allclose(samples[f"mean_{name}"].dropna(), by_row[name].mean(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(samples["mean_weight"].dropna(), by_row["weight"].mean(), rtol=1e-5)
    assert ("mean_delta" in samples) == (score == "delta_logit")
    assert ("share_above_beta" in samples) == (rule == "clamp")


OF_ALL = ["threshold=q0.6", "top_samples=0.5", "vig=0.7"]


@pytest.mark.parametrize("rule", OF_ALL)
def test_a_map_of_all_data_gets_from_them_what_training_gets_and_says_it(
    annotated: Path, llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    flags = ["--score", "delta_logprob", "--map", rule]
    assert run(["samples", str(annotated), "--output", str(tmp_path / "s.parquet"), *flags]) == 0
    _, training = resolve_bounds({}, [annotated], None, rule=Map.parse(rule), score="delta_logprob")
    assert training.threshold is not None
    assert f"--map {training} (of " in caplog.text
    frame = load_annotated(annotated)
    expected = trained(frame, "delta_logprob", map=str(training))
    assert 0 < expected.mean() < 1
    tokens = token_frame(frame, llava.directory, score="delta_logprob", map=str(training))
    assert tokens["weight"].tolist() == expected.tolist()
    written = pq.read_table(tmp_path / "s.parquet").to_pandas()
    means = tokens.groupby("row")["weight"].mean()
    np.testing.assert_allclose(written["mean_weight"].dropna(), means, atol=1e-6)
    with pytest.raises(ConfigError, match=re.escape(f"give {rule}@X")):
        token_frame(frame, llava.directory, score="delta_logprob", map=rule)


def test_show_plot_summary_and_tokens_call_the_score_by_its_name(
    annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--score", "kl", "--map", "top_share=0.4"]
    row = next(at for at, status in enumerate(load_annotated(annotated)["status"]) if status == "ok")
    for by, unit in (("score", "kl, nats"), ("weight", "weight")):
        assert run(["show", str(annotated), f"#{row}", "--by", by, *flags]) == 0
        out = capfd.readouterr().out
        assert f"(in parentheses: {unit})" in out
        assert "undefined; kl mean" in out
        assert "delta" not in out
        assert set(re.findall(r"\(([\d.]+)\)", out)) <= {"0.0", "1.0"} or by == "score"
    assert run(["show", str(annotated), f"#{row}", "--output", str(tmp_path / "a.html"), *flags]) == 0
    html = (tmp_path / "a.html").read_text()
    assert "kl 0" in html
    assert "speaks against" not in html
    assert run(["summary", str(annotated), *flags]) == 0
    out = capfd.readouterr().out
    assert "kl in nats, of all tokens and by turn" in out
    assert "weighed by top_share=0.4" in out
    assert "mean_kl" in out
    assert "delta in" not in out
    assert "< 1 " not in out
    assert run(["summary", str(annotated), "--json", *flags]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert (summary["score"], summary["map"]) == ("kl", "top_share=0.4")
    values = np.concatenate(load_annotated(annotated)["kl_with_without"].tolist())
    assert summary["kl"]["mean"] == pytest.approx(np.nanmean(values))
    assert "delta" not in summary
    assert run(["tokens", str(annotated), "--score", "kl", "--top", "1", "--output", str(tmp_path / "t.csv")]) == 0
    out = capfd.readouterr().out
    assert f"{np.nanmax(values):#.3g}" in out.split("lowest kl")[0]
    assert "highest mean kl" in out
    assert pd.read_csv(tmp_path / "t.csv").columns.tolist() == ["token_id", "token", "count", "mean_kl"]
    assert run(["plot", str(annotated), "--output", str(tmp_path / "kl.png"), "--by", "turn", *flags]) == 0
    groups = count_groups(open_paths([annotated]), None, score="kl", map="top_share=0.4")
    figure = score_figure(groups, alpha=0.0, beta=1.0, score="kl", map="top_share=0.4")
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["kl, nats: KL(P~ || P)", "weight, by top_share=0.4", ""]
    assert not figure.axes[0].texts  # Alpha and beta are no scores.
    low, high = figure.axes[0].get_xlim()
    assert high - low < 2 * (np.nanmax(values) - min(0.0, np.nanmin(values)))


def test_conditions_know_the_score_s_columns(annotated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    samples = sample_frame(load_annotated(annotated), score="kl", map="top_share=0.4")
    border = float(samples["mean_kl"].median())
    flags = ["--score", "kl", "--map", "top_share=0.4"]
    assert run(["filter", str(annotated), f"mean_kl < {border!r} AND mean_weight >= 0.4", *flags]) == 0
    after = ((samples["mean_kl"] < border) & (samples["mean_weight"] >= 0.4)).sum()
    assert re.search(rf"rows +24 +{after} ", capfd.readouterr().out)
    assert (
        len(load_annotated(annotated, filter=f"mean_kl < {border!r}", score="kl"))
        == (samples["mean_kl"] < border).sum()
    )
    assert run(["filter", str(annotated), "mean_delta < 1", *flags]) == 2
    assert "no column 'mean_delta'" in capfd.readouterr().err
    assert run(["filter", str(annotated), "share_below_alpha < 1", *flags]) == 2
    assert "which are of map clamp; got map top_share=0.4" in capfd.readouterr().err


def test_an_export_carries_the_weights_of_the_score(annotated: Path, llava: Family, tmp_path: Path) -> None:
    flags = ["--to", "messages-jsonl", "--model_name_or_path", str(llava.directory), "--output", str(tmp_path / "out")]
    assert run(["export", str(annotated), *flags, "--preset", "vppo"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "data.jsonl").read_text().splitlines()]
    given = [
        weight
        for row in rows
        for weight, label in zip(row["loss_weights"], row["labels"], strict=True)
        if label != -100
    ]
    np.testing.assert_allclose(given, trained(load_annotated(annotated), "kl", map="top_share=0.4"), atol=1e-6)
    about = json.loads((tmp_path / "out" / "cal_export.json").read_text())
    assert (about["weighting"]["score"], about["weighting"]["map"]) == ("kl", "top_share=0.4")


def test_two_measurements_are_compared_by_a_score(annotated: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--score", "kl", "--map", "threshold=q0.5", "--json"]
    assert run(["compare", str(annotated), str(annotated), *flags]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["score"], result["correlation"], result["share_moved"]) == ("kl", 1.0, 0.0)
    frame = load_annotated(annotated)
    assert result["tokens"] == np.isfinite(np.concatenate(frame["kl_with_without"].tolist())).sum()


def test_the_scores_of_one_directory_are_compared(
    annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", str(annotated), "--scores", "--json", "--top", "3"]) == 0
    result = json.loads(capfd.readouterr().out)
    frame = load_annotated(annotated)
    shown = frame[[bool(np.nan_to_num(deltas).any()) for deltas in frame["delta_logits"]]]
    columns = {"delta_logit": "delta_logits", "kl": "kl_with_without", "entropy": "entropy_with_image"}
    values = pd.DataFrame({name: np.concatenate(shown[column].tolist()) for name, column in columns.items()})
    assert (result["rows"], result["tokens"]) == (len(shown), len(values.dropna()))
    expected = values.dropna().rank().corr()
    for one in columns:
        assert len(result["of_tokens"][one]) == 8
        for other in columns:
            assert result["of_tokens"][one][other] == pytest.approx(expected.loc[one, other])
    means = pd.DataFrame({name: shown[column].map(np.nanmean) for name, column in columns.items()}).rank().corr()
    assert result["of_samples"]["kl"]["entropy"] == pytest.approx(means.loc["kl", "entropy"])
    ranked = (values.dropna().rank() - 0.5) / len(values.dropna())
    apart = (ranked["kl"] - ranked["delta_logit"]).abs().nlargest(3)
    found = [abs(item["share_below"]["kl"] - item["share_below"]["delta_logit"]) for item in result["differing"]["kl"]]
    assert found == pytest.approx(apart.tolist())
    token = result["differing"]["kl"][0]
    row = frame.loc[token["row"]]
    at = row["label_positions"].tolist().index(token["position"])
    assert row["sample_id"] == token["sample_id"]
    assert row["kl_with_without"][at] == pytest.approx(token["kl"])
    assert row["delta_logits"][at] == pytest.approx(token["delta_logit"])
    answers = "".join(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")
    assert token["token"].strip() in answers + "</s>"
    assert run(["compare", str(annotated), "--scores", "kl", "js", "--top", "1"]) == 0
    out = capfd.readouterr().out
    assert "rank correlation over the tokens" in out
    assert out.count("ranked most differently by") == 2
    assert "delta_logprob" not in out


def test_a_page_of_another_map_says_so_and_computes_no_weight(annotated: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run(["page", str(annotated), "--output", str(page), "--score", "kl", "--map", "softmax=0.5"]) == 0
    data = read_page_data(page)
    assert (data["title"], data["score"]["noun"], data["map"]) == ("kl of annotated", "kl", "softmax=0.5")
    assert data["live"] is False
    expected = trained(load_annotated(annotated), "kl", map="softmax=0.5")
    given = np.concatenate([sample["weights"] for sample in data["samples"]])
    np.testing.assert_allclose(given, expected, atol=2e-5)
    assert data["beta"] == pytest.approx(max(2.0, *given)) or data["beta"] == pytest.approx(max(1.0, *given))
    said = json.dumps([data["facts"], data["tables"], data["score"]])
    assert "delta" not in said.lower().replace("delta_logit", "")
    head = page.read_text().split('<script type="application/json"')[0]
    assert "kl = KL(P~ || P) (nats)." in head
    assert "Delta" not in head


@browser_test
@pytest.mark.full
def test_a_browser_shows_the_weights_that_were_written_and_no_slider(
    page: Page, annotated: Path, tmp_path: Path
) -> None:
    assert run(["page", str(annotated), "--output", str(tmp_path / "a.html"), "--preset", "vppo"]) == 0
    samples = read_page_data(tmp_path / "a.html")["samples"]
    page.open(tmp_path / "a.html", "sort=row&shade=weight&alpha=0.5&window=3")
    for at, sample in enumerate(samples):
        assert page.js(f"calPage.weightsOf({at})") == sample["weights"]
    assert page.js("['alpha', 'beta', 'window'].every((id) => document.getElementById(id).closest('label').hidden)")
    assert "top_share=0.4, as cal-inspect wrote them" in page.js("document.getElementById('fixed').textContent")
    assert page.js("document.getElementById('banner').hidden")
    assert "cal-inspect filter" in (command := page.js("document.getElementById('command').textContent"))
    assert "--score kl" in command
    assert page.problems == []
    # The sliders are there of a score that is clamped, and its weights are computed in the page.
    flags = ["--score", "delta_logprob", "--beta", "0.5", "--alpha", "0"]
    assert run(["page", str(annotated), "--output", str(tmp_path / "b.html"), *flags]) == 0
    page.open(tmp_path / "b.html", "sort=row")
    assert not page.js("document.getElementById('alpha').closest('label').hidden")
    assert page.js("document.getElementById('banner').hidden")
    samples = read_page_data(tmp_path / "b.html")["samples"]
    at = next(at for at, sample in enumerate(samples) if sample["scores"])
    np.testing.assert_allclose(page.js(f"calPage.weightsOf({at})"), samples[at]["weights"], atol=1e-4)
    assert page.problems == []


REFUSED: dict[str, tuple[list[str], str]] = {
    "a score of training": (["--score", "nll"], "score nll = - ln p(t_j) needs the model in training"),
    "a map of the batch": (["--map", "batch_share=0.6"], "map batch_share=0.6 is of the samples of a micro-batch"),
    "a preset of training": (["--preset", "dft"], "score probability = p(t_j) needs the model in training"),
    "the released pool": (["--preset", "released"], "reads deltas of unsupervised tokens too, which no cache holds"),
    "a contradiction": (["--preset", "vppo", "--score", "js"], "--preset vppo means --score kl, got --score js"),
    "another map": (["--preset", "vppo", "--map", "clamp"], "--preset vppo means --map top_share=0.4, got --map clamp"),
    "a map of another score": (["--score", "entropy", "--map", "pgpo=0.4"], "map pgpo=0.4 is of score kl or"),
    "no map": (["--map", "top"], "map top: expected one of clamp, inverse"),
    "no bounds": (["--score", "kl", "--map", "top_share=0.4", "--alpha", "1"], "alpha must be below 1"),
}


@pytest.mark.parametrize("command", ["show", "summary", "plot", "page", "samples", "filter"])
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line(
    annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, what: str
) -> None:
    flags, message = REFUSED[what]
    output = {"plot": "a.png", "page": "a.html", "samples": "a.csv"}
    given = [str(annotated), *{"show": ["#0"], "filter": ["mean_weight > 1"]}.get(command, [])]
    given += ["--output", str(tmp_path / output[command])] if command in output else []
    assert run([command, *given, *flags]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("command", ["show", "summary", "tokens", "compare"])
def test_a_score_that_was_not_measured_says_what_measures_it(
    plain: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    given = {"show": ["#0"], "compare": ["--scores", "kl"]}.get(command, [])
    given += [] if command == "compare" else ["--score", "kl"]
    assert run([command, str(plain), *given]) == 2
    said = capfd.readouterr().err
    assert f"score kl = KL(P~ || P) reads kl_with_without, which {plain} does not hold: measure it with" in said
    assert "cal-precompute --extra_columns kl" in said
    with pytest.raises(ConfigError, match="cal-precompute --extra_columns kl"):
        sample_frame(load_annotated(plain), score="kl")


@pytest.mark.parametrize(("flags", "message"), [
    (["--scores", "kl", "--score", "kl"], "leave --score out"),
    (["--scores", "--output", "a.png"], "leave --output out"),
    (["--scores", "nll"], "needs the model in training"),
    ([], "are required: B"),
])  # fmt: skip
def test_compare_says_which_flags_go_together(
    annotated: Path, capfd: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    try:
        code = run(["compare", str(annotated), *flags])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2
    assert message in capfd.readouterr().err


def test_deltas_alone_have_nothing_to_be_compared_with(plain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(plain), "--scores"]) == 2
    assert "cal-precompute --extra_columns logprobs,kl,entropy" in capfd.readouterr().err


def test_a_sheet_for_people_is_of_deltas(annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--to", "labelling-sheet", "--output", str(tmp_path / "sheet"), "--score", "kl"]
    assert run(["export", str(annotated), *flags]) == 2
    assert "leave --score, --map and --preset out" in capfd.readouterr().err


def test_a_notebook_s_words_are_shaded_by_the_score(annotated: Path, llava: Family) -> None:
    frame = load_annotated(annotated)
    row = frame[frame["status"] == "ok"].iloc[0]
    words = show_words(row, llava.directory, score="kl", map="top_share=0.4")
    assert "(in parentheses: kl, nats)" in repr(words)
    largest = np.nanmax(row["kl_with_without"])
    assert f"{largest:.3g} nats" in words._repr_html_()
    with pytest.raises(ConfigError, match="by is 'score' or 'weight', got 'delta'"):
        show_words(row, llava.directory, by="delta")  # type: ignore[arg-type]
