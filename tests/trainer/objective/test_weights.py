from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cal_schemas.errors import ConfigError
from cal_trainer.objective.weights import Pool, token_weights

GOLDENS = Path(__file__).parents[2] / "goldens" / "llava15"
NAN = float("nan")
POOLS: tuple[Pool, ...] = ("span", "joined")


def test_smoothing_ignores_unsupervised_neighbours() -> None:
    deltas = torch.tensor([[9.0, 0.0, 2.0, 3.0, 7.0]])
    labels = torch.tensor([[-100, 11, 12, 13, 14]])
    weights = token_weights(deltas, labels, alpha=1.0, beta=5.0, window=3)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1.5, 2.0, 10 / 3, 4.0]]))


def test_span_stops_at_a_gap_and_joined_does_not() -> None:
    deltas, labels = torch.tensor([[2.0, 4.0, 9.0, 3.0]]), torch.tensor([[1, 1, -100, 1]])
    torch.testing.assert_close(token_weights(deltas, labels, pool="span"), torch.tensor([[3.0, 3.0, 0.0, 3.0]]))
    torch.testing.assert_close(token_weights(deltas, labels, pool="joined"), torch.tensor([[3.0, 3.0, 0.0, 3.5]]))


@pytest.mark.parametrize("pool", POOLS)
def test_an_undefined_delta_weighs_alpha_and_stays_out_of_its_neighbours_mean(pool: Pool) -> None:
    deltas, labels = torch.tensor([[2.0, NAN, 4.0]]), torch.tensor([[1, 1, 1]])
    torch.testing.assert_close(token_weights(deltas, labels, alpha=1.5, pool=pool), torch.tensor([[2.0, 1.5, 4.0]]))


def test_alpha_zero_with_nothing_above_it_weighs_nothing() -> None:
    weights = token_weights(torch.tensor([[-3.0, -1.0]]), torch.tensor([[1, 1]]), alpha=0.0)
    assert weights.tolist() == [[0.0, 0.0]]


def test_beta_may_be_infinite() -> None:
    weights = token_weights(torch.tensor([[100.0, 2.0]]), torch.tensor([[1, 1]]), beta=float("inf"), window=1)
    assert weights.tolist() == [[100.0, 2.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": "Span"},
        {"pool": None},
        {"window": 2},
        {"window": 0},
        {"alpha": -1.0},
        {"alpha": 3.0, "beta": 2.0},
        {"alpha": NAN},
        {"beta": NAN},
    ],
)
def test_bounds_and_windows_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        token_weights(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.long), **wrong)


@pytest.mark.parametrize("part", ["main", "edge", "plain"])
@pytest.mark.parametrize(
    ("pool", "name"),
    [("span", "weight_paper_span"), ("joined", "weight_paper_concat"), ("released", "weight_official")],
)
def test_weights_equal_the_goldens(part: str, pool: Pool, name: str) -> None:
    given_, expected = np.load(GOLDENS / f"{part}_inputs.npz"), np.load(GOLDENS / f"{part}_expected.npz")
    labels = torch.tensor(given_["labels"])
    at = (torch.tensor(expected["sample"]).long(), torch.tensor(expected["label_pos"]).long())
    if pool == "released":
        deltas = torch.nn.functional.pad(torch.tensor(expected["raw_full"]).float(), (1, 0), value=NAN)
    else:
        deltas = torch.full(labels.shape, NAN)
        deltas[at] = torch.tensor(expected["delta_raw"]).float()
    np.testing.assert_allclose(token_weights(deltas, labels, pool=pool)[at].numpy(), expected[name], atol=1e-5)


@pytest.mark.parametrize("deltas", [[0.0, 2.0, NAN, 1.0], [NAN, NAN, 2.0, NAN], [0.0, 2.0, 1.0, NAN]])
def test_released_pooling_needs_a_delta_everywhere(deltas: list[float]) -> None:
    with pytest.raises(ConfigError, match="needs a delta for each"):
        token_weights(torch.tensor([deltas]), torch.tensor([[-100, 3, -100, 1]]), pool="released")


def test_released_pooling_leaves_out_what_nothing_precedes() -> None:
    # An image first and no BOS: the image tokens and the first token after them have no delta.
    deltas = torch.tensor([[NAN, NAN, NAN, 3.0, 4.0], [0.0, 2.0, 2.0, 5.0, 1.0]])
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, -100, 7, 8, 9]])
    weights = token_weights(deltas, labels, pool="released")
    expected = [[0.0, 0.0, 1.0, 3.5, 3.0], [0.0, 0.0, 3.0, 8 / 3, 3.0]]
    torch.testing.assert_close(weights, torch.tensor(expected))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    size = rows * length
    deltas = draw(st.lists(st.floats(-20, 20, width=32) | st.just(NAN), min_size=size, max_size=size))
    labels = draw(st.lists(st.sampled_from([-100, 7]), min_size=size, max_size=size))
    return torch.tensor(deltas).view(rows, length), torch.tensor(labels).view(rows, length)


WINDOWS = st.sampled_from([1, 3, 5, 31])


@given(batches(), WINDOWS, st.sampled_from(POOLS))
def test_weights_lie_between_alpha_and_beta_and_are_zero_elsewhere(
    batch: tuple[Tensor, Tensor], window: int, pool: Pool
) -> None:
    deltas, labels = batch
    weights = token_weights(deltas, labels, alpha=0.5, beta=4.0, window=window, pool=pool)
    supervised = labels != -100
    assert bool((weights[supervised] >= 0.5 - 1e-5).all())
    assert bool((weights[supervised] <= 4.0 + 1e-5).all())
    assert bool((weights[~supervised] == 0).all())


@given(batches(), st.sampled_from(POOLS))
def test_window_one_is_the_clamp(batch: tuple[Tensor, Tensor], pool: Pool) -> None:
    deltas, labels = batch
    weights = token_weights(deltas, labels, window=1, pool=pool)
    expected = deltas.nan_to_num(1.0).clamp(1.0, 5.0).where(labels != -100, 0.0)
    torch.testing.assert_close(weights, expected)


@given(batches(), WINDOWS, st.sampled_from(POOLS), st.integers(0, 5))
def test_padding_changes_nothing(batch: tuple[Tensor, Tensor], window: int, pool: Pool, extra: int) -> None:
    deltas, labels = batch
    padded = token_weights(
        torch.nn.functional.pad(deltas, (0, extra), value=3.0), torch.nn.functional.pad(labels, (0, extra), value=-100),
        window=window, pool=pool,
    )  # fmt: skip
    torch.testing.assert_close(padded[:, : deltas.shape[1]], token_weights(deltas, labels, window=window, pool=pool))
    assert bool((padded[:, deltas.shape[1] :] == 0).all())


@given(batches(), WINDOWS, st.sampled_from(POOLS))
def test_batch_composition_changes_nothing(batch: tuple[Tensor, Tensor], window: int, pool: Pool) -> None:
    deltas, labels = batch
    together = token_weights(deltas, labels, window=window, pool=pool)
    alone = [token_weights(deltas[i : i + 1], labels[i : i + 1], window=window, pool=pool) for i in range(len(deltas))]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("window", [1, 3, 7])
def test_released_pooling_is_the_plain_average_where_all_is_defined(window: int) -> None:
    generator = torch.Generator().manual_seed(window)
    deltas = torch.randn((3, 9), generator=generator) * 4
    labels = torch.where(torch.rand((3, 9), generator=generator) < 0.5, 5, -100)
    flat = torch.nn.functional.avg_pool1d(
        deltas.clamp(1.0, 5.0)[:, 1:].reshape(1, 1, -1), window, 1, window // 2, count_include_pad=False
    ).view_as(labels[:, 1:])
    weights = token_weights(deltas, labels, window=window, pool="released")
    torch.testing.assert_close(weights[:, 1:], flat.where(labels[:, 1:] != -100, 0.0))
