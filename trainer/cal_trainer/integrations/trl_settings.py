"""Refuses settings of TRL's trainers that rows of ours leave without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cal_schemas.errors import ConfigError

ENCODED: Final = "rows are encoded as they were measured, by the Encoder"
ONE_ROW: Final = "each row stays a sequence of its own, with its own tokens"
BATCHES: Final[dict[str, tuple[object, str]]] = {
    "padding_free": (False, ONE_ROW),
    "pad_to_multiple_of": (None, "batches are padded to their longest row"),
    "dataset_num_proc": (None, ENCODED),
    "truncation_mode": ("keep_start", ENCODED),
    "pad_token": (None, f"{ENCODED}: its processor has the tokenizer"),
    "use_liger_kernel": (False, "TRL gives it up; model_init_kwargs={'use_kernels': True} is its way"),
}
"""Fields of both SFTConfig and DPOConfig, each with the one value that holds here and the reason."""


def validate_settings(
    args: Any, kind: type[Any], obeyed: Mapping[str, tuple[object, str]], given: Mapping[str, Any], *, max_length: int
) -> None:
    """ConfigError for what TRL would obey in its own data preparation and loss, and not here.

    Args:
        args: of the trainer.
        kind: of TRL's that they must be.
        obeyed: fields of those, with the one value that holds and the reason.
        given: arguments of the trainer that must be absent or None.
        max_length: of the encoder.
    """
    if not isinstance(args, kind):
        raise ConfigError(f"args is {type(args).__name__}: give {kind.__name__}")
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{name}: this trainer has its own; leave it out")
    for name, (wanted, reason) in obeyed.items():
        if (found := getattr(args, name)) != wanted:
            raise ConfigError(f"{kind.__name__}({name}={found!r}) has no effect here: {reason}; it must be {wanted!r}")
    if args.max_length not in (None, max_length):
        raise ConfigError(
            f"{kind.__name__}(max_length={args.max_length}) cuts nothing here: rows are encoded by an Encoder of "
            f"max_length {max_length}; give {kind.__name__}(max_length=None), and the Encoder the length of the "
            "measurement"
        )
    dealing = args.accelerator_config
    if dealing.split_batches or dealing.dispatch_batches:
        raise ConfigError("accelerator_config with split_batches or dispatch_batches would cut batches whose images "
                          "have no row of their own: leave them out")  # fmt: skip
