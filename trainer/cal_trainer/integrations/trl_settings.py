"""Refuses settings of TRL's trainers that rows of ours leave without effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.label_rows import label_rows

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


@torch.no_grad()
def validate_fused_head(model: Any, encoded: EncodedSample, encoder: Encoder) -> None:
    """ConfigError where TRL's forward gives a token's log-probability that is not the model's own.

    TRL's applies what the text config says of logits (a soft cap, a scale), which some vision-language models never do.
    """
    batch = collate([encoded], pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    labels = torch.full_like(inputs["input_ids"], IGNORE_INDEX)
    labels[0, -1] = inputs["input_ids"][0, -1]
    was_training = model.training
    model.eval()
    with label_rows(model, labels):
        logits = model(**inputs, use_cache=False).logits[0, 0]
    theirs = float(model(**inputs, labels=labels, fused_lm_head=True).log_probs[0, -1])
    model.train(was_training)
    own = float(logits.float().log_softmax(-1)[labels[0, -1]])
    if abs(theirs - own) > 16 * torch.finfo(logits.dtype).eps * max(1.0, float(logits.abs().amax())):
        raise ConfigError(
            f"{type(model).__name__}: TRL gives a token the log-probability {theirs:.4f}, and the model {own:.4f}: TRL "
            "applies logit_scale, logits_scaling or final_logit_softcapping of the text config, and this model does "
            "not. Train it with cal-train, or take that field out of the model's text config"
        )
