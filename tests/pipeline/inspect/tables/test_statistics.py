from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cal_pipeline.inspect import flags, load_annotated, token_frame
from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.commands.plot import count_groups
from cal_pipeline.inspect.page.shading import Shading, rgb_on
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.statistics import auc
from cal_schemas.delta_counts import DeltaCounts
from inspect_data import Directories

FLOATS = st.lists(st.one_of(st.floats(-50, 50, width=32), st.just(float("nan"))), min_size=1, max_size=60)


@settings(deadline=None)
@given(FLOATS, st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]), st.integers(0, 60), st.sampled_from([0, 8, 100]))
def test_counted_deltas_agree_with_the_deltas_themselves(
    values: list[float], share: float, cut: int, held: int
) -> None:
    deltas = np.array(values, np.float32)
    counts, rest = (DeltaCounts(held=held, bits=18, below=(0.0, 1.0)) for _ in range(2))
    counts.add(deltas[:cut])
    rest.add(deltas[cut:])
    counts.merge(rest)
    defined = deltas[~np.isnan(deltas)].astype(np.float64)
    assert (counts.defined, counts.undefined) == (len(defined), len(deltas) - len(defined))
    if not len(defined):
        assert np.isnan([counts.mean, counts.quantile(share), counts.share_below(0.0), counts.min]).all()
        return
    assert (counts.min, counts.max) == (defined.min(), defined.max())
    assert counts.share_below(0.0) == (defined < 0).mean()
    assert counts.share_below(1.0) == (defined < 1).mean()
    np.testing.assert_allclose([counts.mean, counts.std], [defined.mean(), defined.std()], rtol=1e-6, atol=1e-4)
    # Either neighbour of the rank is right to 1 part in 1024, and what lies between them follows.
    low, high = (np.quantile(defined, share, method=side) for side in ("lower", "higher"))
    slack = 0.0 if held == 100 else max(abs(low), abs(high)) / 1024 + 1e-30
    assert counts.quantile(share) == pytest.approx(np.quantile(defined, share), rel=1e-12, abs=slack)
    assert counts.histogram(np.linspace(-50, 50, 11)).sum() == len(defined)


def test_memory_does_not_grow_with_the_deltas_nor_does_their_order_matter() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=500).astype(np.float32) for _ in range(50)]
    one, other = DeltaCounts(held=1000, bits=18), DeltaCounts(held=1000, bits=18)
    for part in parts:
        one.add(part)
    other.add(np.concatenate(parts[::-1]))
    shares = (0.001, 0.25, 0.5, 0.9, 0.999)
    assert not one._held
    assert one.quantiles(shares) == other.quantiles(shares)
    np.testing.assert_allclose(one.quantiles(shares), np.quantile(np.concatenate(parts), shares), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("held", [0, 9])
def test_histograms_of_whole_numbers_are_exact(held: int) -> None:
    counts = DeltaCounts(held=held)
    counts.add(np.array([-3.5, -3.5, 0.5, 4.5, 99.0], np.float32))
    assert counts.histogram(np.arange(-5.0, 6.0)).tolist() == [0, 2, 0, 0, 0, 1, 0, 0, 0, 2]


def test_auc_by_hand() -> None:
    assert auc([2, 3], [1, 2]) == (1 + 0.5 + 1 + 1) / 4
    assert np.isnan(auc([], [1]))


def test_summary_says_what_the_frames_say(directories: Directories, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert run(["summary", str(directories.normal), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    frame = load_annotated(directories.normal)
    tokens = token_frame(frame, directories.family.directory)
    assert summary["rows"] == len(frame)
    assert summary["statuses"] == frame["status"].value_counts().to_dict()
    assert summary["images"] == frame["images"].map(len).sum()
    assert summary["text_only_rows"] == ((frame["status"] == "ok") & (frame["images"].map(len) == 0)).sum()
    assert summary["tokens"] == len(tokens)
    assert summary["encoded_tokens"] == frame.loc[frame["status"] == "ok", "num_tokens"].sum()
    assert summary["delta"]["share_below_alpha"] == pytest.approx((tokens["delta"] < 1).mean(), abs=1e-12)
    deltas = tokens["delta"].dropna().to_numpy(np.float64)
    for name, share in (("q1", 0.01), ("q50", 0.5), ("q90", 0.9)):
        assert summary["delta"][name] == pytest.approx(np.quantile(deltas, share), rel=1e-12)
    by_turn = tokens.groupby("turn")["delta"]
    assert {name: value["tokens"] for name, value in summary["turns"].items()} == {
        str(turn): count for turn, count in by_turn.count().items()
    }
    for turn, mean in by_turn.mean().items():
        assert summary["turns"][str(turn)]["mean"] == pytest.approx(mean, rel=1e-5, abs=1e-6)
    assert summary["spec"]["model_id"]
    assert summary["bytes"]["per_token"] > 0


@pytest.mark.parametrize(("by", "suffix"), [*((None, suffix) for suffix in flags.FIGURE_SUFFIXES), ("turn", ".svg")])
def test_plots_are_files_of_their_kind_and_the_same_every_time(
    by: str | None, suffix: str, directories: Directories, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for file in files:
        assert run(["plot", str(directories.normal), "--output", str(file), *(["--by", by] if by else [])]) == 0
    first, second = (file.read_bytes() for file in files)
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert first == second
    if suffix == ".svg":
        for words in (b"alpha = 1", b"beta = 5", b"cumulative share"):
            assert words in first


def test_groups_hold_every_token_once(directories: Directories) -> None:
    opened = open_paths(directories.normal)
    tokens = token_frame(load_annotated(directories.normal), directories.family.directory)
    for by in (None, "source", "turn", "status", "num_tokens"):
        groups = count_groups(opened, by)
        assert len(groups) <= 9
        for kind in (0, 1):
            assert sum(counts[kind].defined for counts in groups.values()) == tokens["delta"].notna().sum()
    by_turn = count_groups(opened, "turn")
    assert {name: counts.defined for name, (counts, _) in by_turn.items()} == {
        f"turn {turn}": count for turn, count in tokens.groupby("turn")["delta"].count().items()
    }


def test_shades_run_from_red_over_none_to_blue() -> None:
    bounds = {"alpha": 1.0, "beta": 5.0}
    values = [Shading(by="score", **bounds).strength(value) for value in (-9.0, -2.5, 0.0, 2.5, 9.0, float("nan"))]
    assert values == [-1.0, -0.5, 0.0, 0.5, 1.0, 0.0]
    assert [Shading(by="weight", **bounds).strength(value) for value in (1.0, 3.0, 5.0)] == [0.0, 0.5, 1.0]
    assert Shading(by="weight", alpha=2.0, beta=2.0).strength(3.0) == 0.0
    assert Shading(by="score", alpha=1.0, beta=float("inf")).strength(3.0) == 0.6
    assert rgb_on((255, 255, 255), 0.0) == (255, 255, 255)
