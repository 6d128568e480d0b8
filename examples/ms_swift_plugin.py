"""A plugin for ms-swift (4.6.0): trains on the weights of `cal-inspect export --to messages-jsonl`.

    swift sft --dataset weights/data.jsonl --external_plugins ms_swift_plugin.py --remove_unused_columns false ...

Every row must have the tokens of the export, image tokens apart, which may be more or fewer: the labels and weights of
the export are then put at its tokens. Otherwise the run ends and says which row differs and where. The loss is
sum(weight * nll) / sum(weight) over the optimizer step; evaluation is uniform. Needs nothing but ms-swift.

Beside the data must lie the export's cal_export.json, which says how images were measured: padded ones
are refused, since ms-swift pads none; other settings are named in the log.
"""

import functools
import json
import os
import re
import sys
from pathlib import Path

import torch
from swift.dataset import DatasetLoader
from swift.template import Template
from swift.trainers import Seq2SeqTrainer
from swift.trainers.trainer_factory import TrainerFactory
from swift.utils import get_logger

COLUMNS = ("sample_id", "sample_key", "template_inputs", "input_ids", "labels", "loss_weights")
IGNORED = -100
AS_THEY_ARE = ("native", "square")  # Images left to the model's processor; square insists on its crop.


def refuse(row, problem):
    """Ends the program: in place of a row that raised an error, ms-swift would train on another one."""
    sys.exit(f"{row['sample_id'] or 'a row'}: {problem}")


def check_measurement(data):
    """Ends the program where ms-swift would show the model other images than were measured, without a word."""
    folder = (data if data.is_dir() else data.parent).resolve()
    if not (folder / "cal_export.json").is_file():
        sys.exit(f"{data}: no cal_export.json in {folder}, which says how its images were measured: leave the files of "
                 "cal-inspect export together")  # fmt: skip
    measured = json.loads((folder / "cal_export.json").read_text())["measurement_spec"]["input"]
    if (ratio := measured["image_aspect_ratio"]) not in AS_THEY_ARE:
        sys.exit(f"{data}: measured with --image_aspect_ratio {ratio}, and ms-swift's images are native: train with "
                 "cal-train, or measure with --image_aspect_ratio native")  # fmt: skip
    root = Path(os.environ.get("ROOT_IMAGE_DIR", ".")).resolve()
    if (folder / "images").is_dir() and root != folder:
        sys.exit(f"{data}: its images lie in {folder}, and ms-swift would look for images of these names in {root}: "
                 f"give ROOT_IMAGE_DIR={folder}, and one such export at a time")  # fmt: skip
    if given := measured["processor_kwargs"]:
        get_logger().warning(
            f"{data}: measured with --processor_kwargs {given}. ms-swift makes images with the settings of the model's "
            "directory, or its own: give it the same"
        )


def of_an_export(load):
    @functools.wraps(load)
    def check_and_load(self, dataset_syntax, *args, **kwargs):
        check_measurement(Path(dataset_syntax.dataset))
        return load(self, dataset_syntax, *args, **kwargs)

    return check_and_load


def weigh(encoded, row, image_tokens):
    """Puts the export's labels and weights at the tokens of ms-swift's encoding."""
    there, here = (
        [(at, token) for at, token in enumerate(tokens) if token not in image_tokens]
        for tokens in (row["input_ids"], encoded["input_ids"])
    )
    if [token for _, token in there] != [token for _, token in here]:
        pairs = enumerate(zip(there, here, strict=False))
        differing = next((f"token {n} is {a} there and {b} here" for n, ((_, a), (_, b)) in pairs if a != b), None)
        refuse(
            row,
            f"ms-swift's template makes other tokens than were measured: {len(there)} there and {len(here)} here "
            f"without image tokens, {differing or 'one is cut'}. Ways out: --template_backend jinja (the model's own "
            "chat template, tokenized in one piece), a larger --max_length, or to leave the row out (--ids_from of "
            "cal-inspect export)",
        )
    took, take = len(row["input_ids"]) - len(there), len(encoded["input_ids"]) - len(here)
    if took != take:
        get_logger().warning_once(
            f"{row['sample_id']}: its images take {take} tokens here and {took} in the export: the weights are of "
            "another resolution (of Qwen's models MIN_PIXELS and MAX_PIXELS set it). Said once",
            hash_id=weigh.__name__,
        )
    labels, weights = [IGNORED] * len(encoded["input_ids"]), [0.0] * len(encoded["input_ids"])
    for (at, _), (to, _) in zip(there, here, strict=True):
        labels[to], weights[to] = row["labels"][at], row["loss_weights"][at]
    encoded["labels"], encoded["loss_scale"] = labels, weights


def weighted(encode):
    @functools.wraps(encode)
    def encode_and_weigh(self, inputs):
        # Taken out: what stays there becomes an argument of the model's forward.
        row = {name: inputs.extra_kwargs.pop(name, None) for name in COLUMNS}
        if self.is_training and row["loss_weights"] is None:
            refuse(row, "no loss_weights: give --remove_unused_columns false, and data of cal-inspect export")
        for message in inputs.messages:
            # Chat templates get an image as a part of its own: the line break beside LLaVA's mark is no text.
            message["content"] = re.sub(r"\n?<image>\n?", "<image>", message["content"])
        encoded = encode(self, inputs)
        if self.is_training:
            if isinstance(encoded, list):
                refuse(row, "--truncation_strategy split divides rows, whose weights would be lost")
            weigh(encoded, row, set(self.placeholder_tokens))
        return encoded

    return encode_and_weigh


class WeightedTrainer(Seq2SeqTrainer):
    """ms-swift's own, which multiplies losses by `loss_scale`; divides by their sum instead of the tokens' number."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.accelerator.num_processes > 1 and not self.args.average_tokens_across_devices:
            sys.exit("--average_tokens_across_devices false would not divide by the weights of all processes")
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, count
        total = torch.stack([batch["loss_scale"].sum() for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(total, reduction="sum").clamp(min=1e-6)  # Nothing weighed is loss 0.

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self.args.label_smoothing_factor or self.args.enable_dft_loss:
            sys.exit("--label_smoothing_factor and --enable_dft_loss replace the weighted loss: leave them out")
        if not self.model.training:
            inputs.pop("loss_scale", None)
        return super().compute_loss(model, inputs, *args, **kwargs)


DatasetLoader.load = of_an_export(DatasetLoader.load)
Template._encode_truncated = weighted(Template._encode_truncated)
TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.{WeightedTrainer.__name__}"
