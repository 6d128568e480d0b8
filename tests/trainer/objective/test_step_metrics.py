"""Sums of weights and losses since the last log, of all and by source."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.data.collator import StepBatch
from cal_trainer.data.sources import Sources
from cal_trainer.objective.source_weights import SourceWeights
from cal_trainer.objective.step_metrics import StepMetrics
from cal_trainer.objective.weighting import Weighting

LABELS = torch.tensor([[7, 7, 7, IGNORE_INDEX], [IGNORE_INDEX, IGNORE_INDEX, 7, 7], [IGNORE_INDEX] * 4])
"""The first token has nothing before it: two of the first row count, two of the second, none of the third."""
WEIGHTS = torch.tensor([[0.0, 1.0, 5.0, 0.0], [0.0, 0.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
NLL = torch.tensor([[1.0, 2.0, 3.0, 5.0], [1.0, 10.0, 6.0, 20.0]])
"""[2, N]: as it is, and times the weight."""
OF_ROWS, OF_TOKENS = torch.tensor([1, 0, 0]), torch.tensor([1.0, 1.0, 0.0, 0.0])


def alone(value: Tensor) -> Tensor:
    return value


def doubled(value: Tensor) -> Tensor:
    """As two ranks that saw the same."""
    return 2 * value


@pytest.mark.parametrize("over_ranks", [alone, doubled])
def test_what_is_logged_of_all_is_logged_of_each_source(over_ranks: object) -> None:
    metrics = StepMetrics(alpha=1.0, beta=5.0, sources=("a", "b", "c"))
    for _ in range(2):
        metrics.add(WEIGHTS, LABELS, metrics.by_source(NLL, OF_TOKENS), torch.tensor(1), None, OF_ROWS)
    assert metrics.pending
    found = metrics.take(over_ranks)  # type: ignore[arg-type]
    assert not metrics.pending
    times = 4 if over_ranks is doubled else 2
    assert found == pytest.approx(
        {
            "mean_weight": 12 / 4, "share_at_alpha": 1 / 4, "share_at_beta": 1 / 4, "unweighted_loss": 11 / 4,
            "weighted_loss": 37 / 12, "unusable_rows": times,
            "source/a/row_share": 0.5, "source/a/token_share": 0.5, "source/a/mean_weight": 3.0,
            "source/a/share_at_alpha": 0.0, "source/a/share_at_beta": 0.0, "source/a/unweighted_loss": 4.0,
            "source/a/weighted_loss": 26 / 6,
            "source/b/row_share": 0.5, "source/b/token_share": 0.5, "source/b/mean_weight": 3.0,
            "source/b/share_at_alpha": 0.5, "source/b/share_at_beta": 0.5, "source/b/unweighted_loss": 1.5,
            "source/b/weighted_loss": 11 / 6,
            "source/c/row_share": 0.0, "source/c/token_share": 0.0,
        }
    )  # fmt: skip


class Noted(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sources", [("a",), ("a", "b", "c")])
def test_a_micro_batch_waits_for_no_device(sources: tuple[str, ...]) -> None:
    metrics = StepMetrics(alpha=1.0, beta=5.0, sources=sources)
    batch = StepBatch(inputs={}, labels=LABELS, image_mask=torch.zeros_like(LABELS, dtype=torch.bool), sources=OF_ROWS)
    with Noted() as noted:
        of_rows = metrics.sources_of(batch)
        metrics.add(WEIGHTS, LABELS, metrics.by_source(NLL, OF_TOKENS), torch.tensor(1), torch.tensor(0.5), of_rows)
    assert "aten::stack" in noted.names
    # A number that Python reads, and what has as many entries as a mask has True, are waited for.
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}
    assert not waits & noted.names
    with Noted() as noted:
        metrics.take(alone)
        assert metrics.by_source(NLL, OF_TOKENS)[0, 0] > 0
    assert "aten::_local_scalar_dense" in noted.names


def test_one_source_is_logged_once_and_needs_no_names() -> None:
    metrics = StepMetrics(alpha=1.0, beta=5.0, sources=("a",))
    metrics.add(WEIGHTS, LABELS, NLL.sum(1), None, torch.tensor(0.5))
    assert metrics.take(alone) == pytest.approx(
        {
            "mean_weight": 3.0, "share_at_alpha": 0.25, "share_at_beta": 0.25, "unweighted_loss": 2.75,
            "weighted_loss": 37 / 12, "unusable_rows": 0.0, "auxiliary_loss": 0.5,
        }
    )  # fmt: skip


def test_a_loss_that_is_no_number_is_that_of_its_source_alone() -> None:
    metrics = StepMetrics(alpha=1.0, beta=5.0, sources=("a", "b"))
    spoilt = NLL.clone()
    spoilt[0, 0] = float("inf")
    assert metrics.by_source(spoilt, OF_TOKENS).tolist() == [[8.0, float("inf")], [26.0, 11.0]]


def test_tokens_of_a_source_whose_deltas_are_left_aside_weigh_alike() -> None:
    batch = StepBatch(inputs={}, labels=LABELS, image_mask=torch.zeros_like(LABELS, dtype=torch.bool), sources=OF_ROWS)
    deltas = torch.tensor([[9.0, 3.0, 9.0, torch.nan], [torch.nan, torch.nan, 0.0, 4.0], [torch.nan] * 4])
    sources = Sources(names=("a", "b", "c"), weights={"b": 1.5})
    found = SourceWeights(Weighting(window=1), sources)(deltas, batch)
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.5, 1.5, 0.0], [0.0, 0.0, 1.0, 4.0], [0.0] * 4]))
    # Of the four tokens that count, the two largest are both of b, whose deltas nobody ranks.
    half = Weighting(map="batch_share=0.5")
    expected = torch.tensor([[0.0, 1.5, 1.5, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4])
    torch.testing.assert_close(SourceWeights(half, sources)(deltas, batch), expected)
    plain = SourceWeights(half, Sources(names=("a", "b", "c")))(deltas, batch)
    torch.testing.assert_close(plain, half(deltas, LABELS))
