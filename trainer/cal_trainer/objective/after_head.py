"""Learns what a model does to its output head's logits before it returns them: soft caps, scales, casts.

The loss in chunks must do the same to every chunk. The model itself shows it, once, on one token: torch says which
operations its logits went through, so no family is known by name. V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cal_pipeline.measuring.distributions import one_token
from cal_pipeline.measuring.replaced_forward import replaced_forward

_log = logging.getLogger("cal-train")
_CAST = torch.ops.aten._to_copy.default
_SLICE = torch.ops.aten.slice.Tensor
_ROUNDINGS = 2
_SAME = torch.ops.aten.alias.default
"""What a cut gives that leaves nothing out."""

Step = tuple[Any, tuple[Any, ...], Mapping[str, Any]]
"""An operation of torch's, and its arguments beside the logits: numbers, no tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AfterHead:
    """Does to a head's logits [..., V] what the model does, in its order; each logit for itself."""

    steps: tuple[Step, ...]
    vocabulary: int
    """Columns of what the head gives."""
    kept: int
    """Those of them that it does not leave out, which are the first ones."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The model's logits; fewer columns where it leaves out those that pad the vocabulary."""
        for operation, arguments, named in self.steps:
            logits = operation(logits, *arguments, **named)
        return logits

    def of_labels(self, logits: Tensor, *, rounded: bool) -> Tensor:
        """The model's logits of those whose columns are not left out, of any shape; without casts unless `rounded`."""
        for operation, arguments, named in self.steps:
            if operation is not _SLICE and (rounded or operation is not _CAST):
                logits = operation(logits, *arguments, **named)
        return logits

    @torch.no_grad()
    def explains(self, raw: Tensor, given: Tensor) -> bool:
        """Whether it makes of the head's label logits [N] those of the model's output [N], but for rounding."""
        expected = self.of_labels(raw, rounded=True).float()
        rounding = max(torch.finfo(dtype).eps for dtype in {given.dtype, raw.dtype, *self.casts})
        given, finite = given.to(expected.device).float(), expected.isfinite()
        largest = expected.where(finite, 0.0).abs().max() if len(expected) else 0.0
        return bool((((given - expected).abs() <= _ROUNDINGS * rounding * largest) | ~finite).all())

    @property
    def casts(self) -> set[torch.dtype]:
        """The formats it rounds to on the way."""
        return {named["dtype"] for operation, _, named in self.steps if operation is _CAST and named.get("dtype")}


@torch.no_grad()
def learn_after_head(model: Any, inputs: Mapping[str, Any], label: Tensor) -> AfterHead | None:
    """Runs the model on one token, and follows its logits from the head to the output.

    None, and a warning, where a logit meets others, or a tensor: what a chunk lacks, or what may differ from batch to
    batch; and where the model takes no single token.

    Args:
        model: unwrapped.
        inputs: of a batch; of all ranks the same names, as in every forward.
        label: [1], a token's id.
    """
    head, seen = model.get_output_embeddings(), _Followed()
    forward = head.forward
    device = next(model.parameters()).device

    def followed(hidden: Tensor) -> Tensor:
        logits: Tensor = forward(hidden)
        return seen.follow(logits)

    # Compiled code would not show its operations.
    eager = torch.compiler.set_stance("force_eager")
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        eager,
        replaced_forward(head, followed),
        seen,
    ):
        try:
            output = model(**one_token(model, inputs, label), use_cache=False).logits
        except Exception as error:  # of a model of whatever kind: its training does not depend on this
            output, seen.failure = None, f"it does not take one token ({type(error).__name__}: {error})"
    steps = seen.steps_to(output)
    if isinstance(steps, str):
        _log.warning(
            "%s: its loss is not computed in chunks, so memory grows with the supervised tokens, and online deltas in "
            "half precision carry the rounding of its head: %s",
            type(model).__name__, steps,
        )  # fmt: skip
        return None
    return AfterHead(steps=steps, vocabulary=seen.head[0].shape[-1], kept=output.shape[-1])


class _Followed(TorchDispatchMode):
    """Notes the operations on what the head gave, and on what comes of it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.head: list[Tensor] = []
        # By identity, and kept alive for it: another tensor could have the address of one that is gone.
        self._reached: list[tuple[Tensor, tuple[Step, ...]]] = []
        self.failure = ""

    def follow(self, logits: Tensor) -> Tensor:
        """Starts at these logits of the head."""
        self.head.append(logits)
        self._reached.append((logits, ()))
        return logits

    def steps_to(self, output: Any) -> tuple[Step, ...] | str:
        """The operations from the head to the model's output; a string says why they are not known."""
        steps = self._steps_of(output)
        if self.failure or len(self.head) != 1:
            return self.failure or f"one forward calls its head {len(self.head)} times"
        if steps is None:
            return "what it returns is not what its head gave"
        again = AfterHead(steps=steps, vocabulary=0, kept=0)(self.head[0])
        same = torch.equal(again.nan_to_num(), output.nan_to_num())
        return steps if same else "what it does to its logits does not give the same twice"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        before = next((steps for steps in map(self._steps_of, tensors) if steps is not None), None)
        if before is None:
            return result
        alone = len(tensors) == 1 and args[0] is tensors[0] and not func._schema.is_mutable
        columns = func is _SLICE and args[1] == args[0].dim() - 1 and args[2:3] in ((), (0,), (None,)) and len(args) < 5
        if alone and (torch.Tag.pointwise in func.tags or func in (_CAST, _SAME) or columns):
            self._reached.append((result, (*before, (func, args[1:], kwargs))))
        else:
            self.failure = self.failure or f"{func} of its logits is nothing that is done to each of them for itself"
        return result

    def _steps_of(self, tensor: Any) -> tuple[Step, ...] | None:
        return next((steps for reached, steps in self._reached if reached is tensor), None)
