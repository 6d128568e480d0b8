"""LLaMA-Factory's v1 trainer (0.9.5) on the weights of `cal-inspect export --to messages-jsonl`.

    python examples/llamafactory_v1.py config.yaml train_dataset=weights/data.jsonl

Takes what `USE_V1=1 llamafactory-cli sft` takes. That reads a weight per message and no images; here rows come encoded
as they were measured, with their images, and the loss is sum(weight * nll) / sum(weight) over the optimizer step. The
model must have the tokenizer and the image processor of the export; `template` is not used. Needs nothing but
LLaMA-Factory. Written for processors whose image tokens are all one id (Qwen-VL, LLaVA-1.5).

Beside the data must lie the export's cal_export.json, which says how images were measured: padded ones
are refused, since nothing pads them here; other settings than the model's are named in the log.
"""

import json
import sys
from itertools import groupby
from pathlib import Path

from llamafactory.v1.accelerator.helper import ReduceOp
from llamafactory.v1.accelerator.interface import DistributedInterface
from llamafactory.v1.trainers import sft_trainer
from llamafactory.v1.utils import logging
from llamafactory.v1.utils.helper import compute_valid_tokens
from PIL import Image

IGNORED = -100
AS_THEY_ARE = ("native", "square")  # Images left to the model's processor; square insists on its crop.


def check_measurement(data, image_processor):
    """Raises ValueError where the model would be shown other images than were measured, without a word."""
    about = data.with_name("cal_export.json")
    if data.suffix != ".jsonl" or not about.is_file():
        raise ValueError(f"train_dataset {data}: give data.jsonl of cal-inspect export --to messages-jsonl, with "
                         "cal_export.json, which says how its images were measured, beside it")  # fmt: skip
    measured = json.loads(about.read_text())["measurement_spec"]["input"]
    if (ratio := measured["image_aspect_ratio"]) not in AS_THEY_ARE:
        raise ValueError(f"{data}: measured with --image_aspect_ratio {ratio}, and images here are native: train with "
                         "cal-train, or measure with --image_aspect_ratio native")  # fmt: skip
    given = json.loads(measured["processor_kwargs"] or "{}")
    given.pop("device", None)  # Where images were resized, not how.
    made = type(image_processor).from_dict({**image_processor.to_dict(), **given}).to_dict()
    settings = image_processor.to_dict()
    differing = {name: settings.get(name) for name in made if _text(made[name]) != _text(settings.get(name))}
    if differing:
        logging.get_logger().warning_rank0(
            f"{data}: measured with --processor_kwargs {given}, and this model's image processor has {differing}: the "
            "weights are of other pixels"
        )


def _text(setting):
    return json.dumps(setting, sort_keys=True, default=str)


class ExportedRows:
    """Stands in for LLaMA-Factory's renderer: hands on the tokens, labels and weights of the export."""

    def __init__(self, processor, folder, cutoff_len):
        self.processor, self.folder, self.cutoff_len = processor, folder, cutoff_len

    def process_samples(self, samples):
        return [self.encoded(row) for row in samples]

    def encoded(self, row):
        if row.get("loss_weights") is None:
            raise ValueError("a row has no loss_weights: give data of cal-inspect export --to messages-jsonl")
        tokens = len(row["input_ids"])
        if tokens > self.cutoff_len:
            raise ValueError(f"{row['sample_id']}: {tokens} tokens, and cutoff_len is {self.cutoff_len}")
        self.check_words(row)
        return {
            "input_ids": row["input_ids"],
            "attention_mask": [1] * tokens,
            "labels": row["labels"],
            "loss_weights": row["loss_weights"],
            "mm_token_type_ids": [int(token == self.processor.image_token_id) for token in row["input_ids"]],
            "images": json.dumps([str(self.folder / name) for name in row["images"]]),  # Text is passed through.
        }

    def check_words(self, row):
        """The measured label ids must spell the answers in this model's tokenizer too."""
        answers = "".join("".join(m["content"].split()) for m in row["messages"] if m["role"] == "assistant")
        spans = [
            list(span) for supervised, span in groupby(row["labels"], lambda label: label != IGNORED) if supervised
        ]
        spelled = [self.processor.tokenizer.decode(span, skip_special_tokens=True) for span in spans]
        foreign = [words for words in spelled if "".join(words.split()) not in answers]
        if row.get("template_inputs") is not None:
            foreign = []  # The template may write more than the messages have: a tool's call, a thought.
        if answers and not "".join(spelled).strip():
            foreign = [""]
        if foreign:
            raise ValueError(
                f"{row['sample_id']}: its label ids spell {foreign[0][:60]!r} in this model's tokenizer, no part of "
                "its answers: train the model that the export was made with"
            )


class WeightedTrainer(sft_trainer.SFTTrainer):
    def __init__(self, *, args, renderer, train_dataset, **options):
        if args.dist_config and (size := args.dist_config.get("cp_size", 1)) > 1:
            raise ValueError(f"dist_config cp_size {size}: LLaMA-Factory then takes a loss of its own, without images "
                             "and without the step's weights: leave it out")  # fmt: skip
        data = Path(train_dataset.path).absolute()
        check_measurement(data, renderer.processor.image_processor)
        rows = ExportedRows(renderer.processor, data.parent, args.cutoff_len)
        super().__init__(args=args, renderer=rows, train_dataset=train_dataset, **options)

    def _create_batch_generator(self):
        super()._create_batch_generator()
        generate = self.train_batch_generator._generate_batch
        self.train_batch_generator._generate_batch = lambda: self.scaled(generate())

    def scaled(self, step):
        """The weights of a step's micro-batches, times tokens / weights: the trainer divides the step by its tokens."""
        if step is None:
            return None
        sums = compute_valid_tokens(step), float(sum(batch["loss_weights"].sum() for batch in step))
        tokens, weights = (DistributedInterface().all_reduce(value, op=ReduceOp.SUM) for value in sums)
        for batch in step:
            batch["loss_weights"] *= tokens / weights if weights else 0.0
        return step

    def compute_loss(self, batch):
        weights = batch["loss_weights"].to(self.device)[:, 1:]
        return -(self.compute_log_probs(self.model, batch) * weights).sum() / max(1, compute_valid_tokens([batch]))

    def compute_log_probs(self, model, batch):
        names = [name for row in batch["images"] for name in json.loads(row)]
        images = [Image.open(name).convert("RGB") for name in names]
        pixels = self.renderer.processor.image_processor(images=images, return_tensors="pt") if images else {}
        return super().compute_log_probs(model, {**batch, **pixels})


if __name__ == "__main__":
    sft_trainer.SFTTrainer = WeightedTrainer
    sys.exit(sft_trainer.run_sft())
