"""Tells how precisely a forward computes, and by how much two ways to the same logits may therefore differ.

What the weights are stored in does not tell: autocast, FSDP and DeepSpeed multiply in other formats than they store,
and so do quantised layers. The forward is watched instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_Result = TypeVar("_Result")

HALF: Mapping[str, float] = {"float16": 2**-11, "tf32": 2**-11, "bfloat16": 2**-8}
"""Formats that are coarser than float32, and the share of a number that rounding to them takes at most, or gives."""
EXACT_TOLERANCE = 1e-3
"""In logits, on the largest difference, in float32: other batches and machines give 1e-5 to 1e-4."""
_ROUNDINGS: Mapping[str, int] = {"head": 2, "passes": 8}
"""Tolerance in roundings of the format. Measured on decoders of 2 to 64 layers: one head in two ways 0.4 to 0.8; two
passes 0.2 to 1.2 where weights have the size of trained ones, up to 6 in bfloat16 where they amplify any difference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """The format of the coarsest numbers that a forward makes."""

    name: str
    """`float32` or a key of HALF; of anything quantised it is bfloat16, whose rounding theirs comes to."""

    @property
    def exact(self) -> bool:
        """True where differences of single logits are bounded, and not their root mean square."""
        return self.name not in HALF

    def tolerance(self, logits: Tensor, what: Literal["head", "passes"] = "passes") -> float:
        """In logits. In half precision a share of their root mean square: what rounding takes grows with a number.

        what: `head` where the same hidden rows are multiplied in two ways, `passes` where two forwards are compared.
        """
        return EXACT_TOLERANCE if self.exact else self.share(what) * _rms(logits)

    def share(self, what: Literal["head", "passes"] = "passes") -> float:
        """Tolerated root mean square of differences, as a share of that of the logits; of no meaning where exact."""
        return _ROUNDINGS[what] * HALF[self.name]

    def size(self, differences: Tensor) -> float:
        """The number that `tolerance` bounds: the largest difference, or their root mean square; 0 of none."""
        if not differences.numel():
            return 0.0
        return float(differences.abs().max()) if self.exact else _rms(differences)


FLOAT32: Final = Precision(name="float32")


def precision_of(names: set[str], *, quantized: bool) -> Precision:
    """The coarsest of the names of formats that a forward makes numbers in."""
    narrow = quantized or any(name.startswith("float8") for name in names)
    coarse = {"bfloat16"} if narrow else names & HALF.keys()
    return Precision(name=max(coarse, key=HALF.__getitem__) if coarse else "float32")


def watched(model: Any, run: Callable[[], _Result]) -> tuple[_Result, Precision]:
    """Runs `run`; its result, and the precision of the model's forwards in it: what operations give numbers in."""
    with _Watch() as watch:
        result = run()
    names = {str(dtype).removeprefix("torch.") for dtype in (model.dtype, *watch.dtypes)}
    # Products of float32 numbers in a coarser format, by a setting of the process, have float32 results.
    cuda = next(model.parameters()).device.type == "cuda"
    backend: Any = torch.backends.cuda if cuda else torch.backends.mkldnn
    names.add({"bf16": "bfloat16"}.get(setting := backend.matmul.fp32_precision, setting))
    return result, precision_of(names, quantized=is_quantized(model))


def is_quantized(model: Any) -> bool:
    """Says whether transformers quantised the model's weights, or loaded them so."""
    return bool(getattr(model, "is_quantized", False))


class _Watch(TorchDispatchMode):
    """Collects the formats of floating-point results, below autocast and whatever casts of its own."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.dtypes |= {
            item.dtype for item in tree_leaves(result) if isinstance(item, Tensor) and item.is_floating_point()
        }
        return result


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt()) if values.numel() else 0.0
