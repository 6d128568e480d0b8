"""Weights, loss and normalisation against Eq. 3-5 of the paper, written out token by token in plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from cal_trainer.objective.label_rows import at_rows, supervised_ids
from cal_trainer.objective.loss import known_denominator, normalized, weighted_nll
from cal_trainer.objective.weighting import Weighting
from cal_trainer.objective.weights import Pool, token_weights

NAN, INF = float("nan"), float("inf")
VOCABULARY = 5


def slow_weights(
    deltas: list[list[float]], labels: list[list[int]], alpha: float, beta: float, window: int, pool: Pool
) -> list[list[float]]:
    """Eq. 3 and 4: clamp, then the mean over the neighbours that there are."""
    rows = []
    for row_deltas, row_labels in zip(deltas, labels, strict=True):
        runs: list[list[int]] = []
        for t, label in enumerate(row_labels):
            if label == -100:
                continue
            if runs and (pool == "joined" or row_labels[t - 1] != -100):
                runs[-1].append(t)
            else:
                runs.append([t])
        row = [0.0] * len(row_labels)
        for run in runs:
            for at, t in enumerate(run):
                near = run[max(0, at - window // 2) : at + window // 2 + 1]
                clamped = [min(max(row_deltas[n], alpha), beta) for n in near if not math.isnan(row_deltas[n])]
                row[t] = alpha if math.isnan(row_deltas[t]) else sum(clamped) / len(clamped)
        rows.append(row)
    return rows


def slow_nll(logits: Tensor, label: int) -> float:
    values = [float(value) for value in logits]
    top = max(values)
    return math.log(sum(math.exp(value - top) for value in values)) + top - values[label]


@st.composite
def samples(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]]]:
    """Rows of any runs of supervision, padding left and right, and deltas of which some or all are undefined."""
    rows, length = draw(st.integers(0, 4)), draw(st.integers(1, 14))
    delta = st.floats(-20, 20, width=32, allow_subnormal=False)  # 1e-43 has five bits; some processors make it 0
    deltas, labels = [], []
    for _ in range(rows):
        left, right = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        inner = draw(st.lists(st.sampled_from([-100, 1, 2, 3]), min_size=length, max_size=length))
        labels.append(([-100] * left + inner + [-100] * right + [-100] * 6)[: length + 6])
        kind = draw(st.sampled_from([delta, delta | st.just(NAN), st.just(NAN)]))
        deltas.append(draw(st.lists(kind, min_size=length + 6, max_size=length + 6)))
    return deltas, labels


def tensors(batch: tuple[list[list[float]], list[list[int]]]) -> tuple[Tensor, Tensor]:
    deltas, labels = batch
    length = len(labels[0]) if labels else 3
    return torch.tensor(deltas).view(-1, length), torch.tensor(labels, dtype=torch.long).view(-1, length)


WEIGHTINGS = st.fixed_dictionaries({
    "alpha": st.sampled_from([0.0, 0.5, 1.0]),
    "beta": st.sampled_from([1.0, 5.0, INF]),
    "window": st.sampled_from([1, 3, 5, 99]),
    "pool": st.sampled_from(["span", "joined"]),
})  # fmt: skip


@given(samples(), WEIGHTINGS)
def test_weights_are_those_of_equations_3_and_4(batch: Any, weighting: dict[str, Any]) -> None:
    found = token_weights(*tensors(batch), **weighting)
    expected = torch.tensor(slow_weights(*batch, **weighting)).view_as(found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@given(samples(), WEIGHTINGS, st.sampled_from(["step", "sample", "micro_batch"]), st.integers(0, 99))
def test_the_loss_is_that_of_equation_5_under_every_normalization(
    batch: Any, weighting: dict[str, Any], normalization: Any, seed: int
) -> None:
    deltas, labels = tensors(batch)
    logits = torch.randn(*labels.shape, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 5
    chosen = Weighting(**weighting, normalization=normalization)
    counted, share = normalized(chosen(deltas, labels), labels, normalization)
    total = weighted_nll(
        at_rows(logits.roll(1, 1).movedim(-1, 0), labels).T, supervised_ids(labels), at_rows(counted, labels)
    )
    found = float(total / share.where(share > 0, 1.0))

    slow = slow_weights(*batch, **weighting)
    sums, masses = [], []
    for row, row_labels in enumerate(batch[1]):
        at = [t for t in range(1, len(row_labels)) if row_labels[t] != -100]
        sums.append(sum(slow[row][t] * slow_nll(logits[row, t - 1], row_labels[t]) for t in at))
        masses.append(sum(slow[row][t] for t in at))
    if normalization == "sample":
        means = [total / mass for total, mass in zip(sums, masses, strict=True) if mass > 0]
        expected = sum(means) / len(means) if means else 0.0
    else:
        released = 1e-6 if normalization == "micro_batch" else 0.0
        expected = sum(sums) / (sum(masses) + released) if sum(masses) > 0 else 0.0
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if (known := known_denominator(labels, deltas, chosen)) is not None and normalization != "micro_batch":
        assert float(known) == pytest.approx(float(share))


@given(samples(), WEIGHTINGS)
def test_what_is_known_before_the_forward_is_what_the_forward_finds(batch: Any, weighting: dict[str, Any]) -> None:
    deltas, labels = tensors(batch)
    chosen = Weighting(**weighting, normalization="sample")
    known = known_denominator(labels, None, chosen)
    assert (known is None) == (chosen.alpha == 0)
    if known is not None:
        assert float(known) == float(normalized(chosen(deltas, labels), labels, "sample")[1])


def test_left_padding_shifts_weights_and_changes_none() -> None:
    deltas, labels = torch.tensor([[2.0, 9.0, NAN, 3.0]]), torch.tensor([[1, 1, 1, 1]])
    weights = token_weights(deltas, labels, window=3)
    padded = token_weights(F.pad(deltas, (5, 0), value=NAN), F.pad(labels, (5, 0), value=-100), window=3)
    torch.testing.assert_close(weights, torch.tensor([[3.5, 3.5, 1.0, 3.0]]))
    torch.testing.assert_close(padded, F.pad(weights, (5, 0)))


def test_a_span_without_a_defined_delta_weighs_alpha_whatever_stands_beside_it() -> None:
    deltas, labels = torch.tensor([[NAN, NAN, 0.0, 4.0, 4.0]]), torch.tensor([[1, 1, -100, 1, 1]])
    for pool in ("span", "joined"):
        weights = token_weights(deltas, labels, alpha=0.5, window=31, pool=pool)
        torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, 0.0, 4.0, 4.0]]))


def test_bf16_deltas_and_logits_are_weighed_and_summed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, VOCABULARY, generator=generator).bfloat16()
    labels = torch.randint(0, VOCABULARY, (1, 64), generator=generator)
    deltas = (torch.randn(1, 64, generator=generator) * 4).bfloat16()
    weights = token_weights(deltas, labels)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, token_weights(deltas.float(), labels))
    loss = weighted_nll(logits, labels[0], weights[0])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, weighted_nll(logits.float(), labels[0], weights[0]))


def test_the_summed_loss_is_every_token_s_weight_times_its_nll() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5], [3.0, 0.0, 0.0, 0.0, 1.0]])
    expected = 0.25 * slow_nll(logits[0], 4) + 3.0 * slow_nll(logits[1], 0)
    assert float(weighted_nll(logits, torch.tensor([4, 0]), torch.tensor([0.25, 3.0]))) == pytest.approx(expected)


def test_no_supervised_token_is_loss_zero_with_a_gradient_of_zero() -> None:
    logits = torch.randn(0, VOCABULARY, requires_grad=True)
    loss = weighted_nll(logits, torch.empty(0, dtype=torch.long), torch.empty(0))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert token_weights(torch.empty(0, 4), torch.empty(0, 4, dtype=torch.long)).shape == (0, 4)
