"""Runs a forward for the nll of its labels: at once, or in chunks where all logits together would be many.

B batch, T padded tokens, N supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from cal_schemas.errors import ConfigError
from cal_trainer.objective.after_head import AfterHead, learn_after_head
from cal_trainer.objective.chunked_nll import chunked_rows
from cal_trainer.objective.label_rows import head_products, label_rows, supervised_ids
from cal_trainer.objective.loss import label_nll

CHUNKED_ABOVE: Final = 256 * 2**20
"""Bytes of all logits in float32 above which the loss is computed in chunks.

They take 1.4 to 1.8 times the time; at once a loss takes three times its logits, 0.8 GB here (benchmarks/long_answers).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelLosses:
    """What one forward says of its N labels, in the order of `supervised_ids`."""

    nll: Tensor
    """[N] float32, with gradient."""
    logits: Tensor | None
    """[N] float32: of the labels, as the label-only LM head would have given them; None where nobody asked.

    Rounded to the head's format where it is not known what the model does to its logits (`learn_after_head`), or where
    it does something else in this batch.
    """
    output: Any
    """The model's."""


class LabelLossRunner:
    """Of one model; without having learned what that does to its logits it never computes in chunks.

    chunks: whether it ever may. Their gradients pass beside the graph that torch compiles.
    """

    def __init__(self, *, chunks: bool = True) -> None:
        self._chunks = chunks
        self._after: AfterHead | None = None
        self._learned = False

    def learn(self, model: Any, inputs: Mapping[str, Any], labels: Tensor) -> None:
        """Learns it (`learn_after_head`) where it has not: on all ranks, whatever the size of their first batches."""
        if not self._learned:
            ids = supervised_ids(labels)
            self._after = learn_after_head(model, inputs, ids[:1] if len(ids) else labels.new_zeros(1))
            self._learned = True

    def __call__(self, forward: Callable[[], Any], model: Any, labels: Tensor, *, logits: bool = False) -> LabelLosses:
        """Calls `forward` once.

        Args:
            forward: calls the model, wrapped as it may be, on the inputs.
            model: the one inside.
            labels: [B, T] unshifted.
            logits: whether `LabelLosses.logits` is wanted.
        """
        label_ids = supervised_ids(labels)
        if self._chunks and self._after and 4 * len(label_ids) * self._after.vocabulary > CHUNKED_ABOVE:
            return self._in_chunks(self._after, forward, model, labels, logits)
        with label_rows(model, labels), ExitStack() as stack:
            products = stack.enter_context(head_products(model, labels)) if logits and self._after else []
            output = forward()
        rows = output.logits[0]
        of_labels = rows.detach().gather(1, label_ids[:, None])[:, 0] if logits else None
        if of_labels is not None:
            known = [exact for raw, exact in products if self._after and self._after.explains(raw, of_labels)]
            of_labels = self._after.of_labels(known[0], rounded=False) if self._after and known else of_labels.float()
        return LabelLosses(nll=label_nll(rows, label_ids), logits=of_labels, output=output)

    def _in_chunks(
        self, after: AfterHead, forward: Callable[[], Any], model: Any, labels: Tensor, logits: bool
    ) -> LabelLosses:
        with chunked_rows(model, labels, after, exact=logits) as found:
            output = forward()
        (rows,) = found
        if not after.explains(rows.raw, output.logits.detach().flatten()):
            raise ConfigError(
                f"{type(model).__name__} does to the logits of this batch something else than to those of one token, "
                "so its loss cannot be computed in chunks: take fewer rows at a time (--per_device_train_batch_size, "
                "--per_device_eval_batch_size), whose loss is computed at once"
            )
        return LabelLosses(nll=rows.bring_back(output.logits), logits=rows.exact, output=output)
