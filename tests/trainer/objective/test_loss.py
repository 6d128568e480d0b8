"""The loss and its denominator on two rows: one with two weighed tokens, one with a first token only."""

import pytest
import torch

from cal_schemas.errors import ConfigError
from cal_trainer.config import Normalization
from cal_trainer.objective.loss import known_denominator, normalized, weighted_nll
from cal_trainer.objective.weighting import Weighting

LABELS = torch.tensor([[-100, 7, 8, -100], [9, -100, -100, -100]])  # nothing predicts a row's first token
NOTHING = torch.full((2, 4), -100)
WEIGHTS = torch.tensor([[0.0, 0.25, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]])
NLL = torch.tensor([[0.0, 4.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize(("normalization", "expected"), [("step", 0.75), ("sample", 1.0), ("micro_batch", 1.0)])
def test_of_known_weights_step_counts_their_sum_sample_the_rows_that_weigh_and_micro_batch_itself(
    normalization: Normalization, expected: float
) -> None:
    weighting = Weighting(alpha=0.0, window=1, normalization=normalization)  # deltas are weights
    for labels, deltas, count in ((LABELS, WEIGHTS, expected), (NOTHING, torch.zeros(2, 4), 0.0)):
        known = known_denominator(labels, deltas, weighting)
        assert known is not None
        assert known.dtype == torch.float32
        assert known.item() == count


def test_a_slip_in_the_normalization_is_not_taken_for_micro_batch() -> None:
    with pytest.raises(ConfigError, match="normalization must be one of step, sample, micro_batch, count, got 'Step'"):
        Weighting(normalization="Step")  # type: ignore[arg-type]


def test_before_the_forward_only_rows_and_micro_batches_can_be_counted() -> None:
    samples, batch = (Weighting(normalization=name) for name in ("sample", "micro_batch"))
    for labels, count in (
        (LABELS, 1.0),
        (LABELS.flip(0)[:1], 0.0),
        (LABELS[:, :2], 1.0),
        (NOTHING, 0.0),
        (LABELS[:1].repeat(3, 1), 3.0),
    ):
        known, one = known_denominator(labels, None, samples), known_denominator(labels, None, batch)
        assert known is not None
        assert one is not None
        assert known.dtype == one.dtype == torch.float32
        assert (known.item(), one.item()) == (count, min(count, 1.0))
    assert known_denominator(LABELS, None, Weighting(normalization="step")) is None
    assert known_denominator(LABELS, None, Weighting(normalization="sample", alpha=0.0)) is None


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("step", (2.0, 0.75)), ("sample", (2 / 0.75, 1.0)), ("micro_batch", (2 / 0.750001, 1.0))],
)
def test_the_weighted_sum_is_that_of_the_batch_the_means_of_its_rows_or_its_mean(
    normalization: Normalization, expected: tuple[float, float]
) -> None:
    counted, share = normalized(WEIGHTS, LABELS, normalization)
    assert (float((NLL * counted).sum()), float(share)) == pytest.approx(expected, rel=1e-7)
    assert counted.dtype == share.dtype == torch.float32


@pytest.mark.parametrize("normalization", ["step", "sample", "micro_batch"])
def test_where_nothing_weighs_sum_share_and_gradient_are_zero(normalization: Normalization) -> None:
    nll = NLL.clone().requires_grad_()
    counted, share = normalized(torch.zeros(2, 4), LABELS, normalization)
    total = (nll * counted).sum()
    total.backward()
    assert (total.item(), share.item()) == (0.0, 0.0)
    assert nll.grad is not None
    assert nll.grad.tolist() == torch.zeros(2, 4).tolist()


def test_several_weights_give_a_sum_each_of_one_nll_and_the_gradient_of_the_sum_that_is_trained() -> None:
    logits, label_ids = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([4, 0, 2])
    weights = torch.tensor([[1.0, 2.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    together, alone = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    sums = weighted_nll(together, label_ids, weights)
    assert sums.tolist() == pytest.approx([float(weighted_nll(logits, label_ids, row)) for row in weights])
    sums[0].backward()
    weighted_nll(alone, label_ids, weights[0]).backward()
    assert together.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(together.grad, alone.grad)
