"""Goes the way of demo.py with a tiny Qwen2.5-VL through its own processor, which needs torchvision.

    python examples/shapes/qwen.py --output_dir demo-qwen

Images keep their sizes and have as many tokens as they are large (dynamic resolution), positions have three axes
(M-RoPE). In a checkout `make demo-qwen` runs it, with the torchvision that the tests use.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils.logging import disable_progress_bar

import words
import world
from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_schemas.sample import IMAGE_MARK, Sample, Turn
from cal_schemas.spec import IGNORE_INDEX
from demo import COLUMNS, TARGET_AUC, WRONG_SHARE, call, precompute, say
from tokenizer import IMAGE_TOKEN, build_tokenizer

TRAIN_SAMPLES, DIRTY_SAMPLES, SHARDS = 3000, 400, 2
IMAGE, VIDEO, START, END = IMAGE_TOKEN, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
PATCH_PX = 14  # 2 x 2 patches make a token: one of 28 x 28 pixels
SIDES_PX = (56, 84)
LIGHT = 60  # of 255
TEMPLATE = (
    "{% for message in messages %}{{ 'USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for part in message['content'] %}"
    f"{{{{ '{START}{IMAGE}{END}' if part['type'] == 'image' else part['text'] }}}}"
    "{% endfor %}{{ eos_token if message['role'] == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT: ' }}{% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("demo-qwen"))
    parser.add_argument("--num_steps", type=int, default=330, help="training steps of the reference")
    parser.add_argument("--train_steps", type=int, default=20, help="training steps of the student: a look at the path")
    options = parser.parse_args()
    output: Path = options.output_dir
    if output.exists():
        parser.error(f"{output} is there already; choose another --output_dir")
    output.mkdir(parents=True)
    began = time.monotonic()
    disable_progress_bar()

    say(began, "1. The world of shapes, in images of four sizes")
    rng = np.random.default_rng(0)
    clean = [varied(sample, rng) for sample in world.generate(TRAIN_SAMPLES, seed=1000, wrong_share=0.0)]
    dirty = [varied(sample, rng) for sample in world.generate(DIRTY_SAMPLES, seed=0, wrong_share=WRONG_SHARE)]
    shards = world.write_parquet_shards(dirty, output / "dirty", num_shards=SHARDS)
    print(f"{len(clean)} images with true captions, and {len(dirty)} of which {WRONG_SHARE:.0%} have another's")

    say(began, "2. A reference: a tiny Qwen2.5-VL, trained on the clean captions")
    start, trained = output / "random_start", output / "reference"
    build(start, [*(sample.clean_caption for sample in clean), *world.QUESTIONS])
    losses = train_reference(start, trained, clean, options.num_steps)
    print(f"{len(losses)} steps, loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f} nats per token")

    say(began, "3. cal-precompute, and the deltas in pandas")
    annotated = output / "annotated"
    precompute(trained, annotated, "--data_path", shards[0].parent, "--reference_saw_data", "no")
    frame = pd.read_parquet(annotated, columns=[*COLUMNS, "label_positions", "messages", "word_kinds"])
    print(frame[COLUMNS].head(3).to_string(max_colwidth=44))
    table = words.table(words.token_frame(frame, AutoTokenizer.from_pretrained(trained)))
    print(table.round(3).to_string(na_rep="-"))

    say(began, "4. cal-train with the cached deltas")
    train(start, output / "student", options.train_steps, "--data_path", annotated)
    low = table["auc"].drop("correlated")
    say(began, "Done")
    if (low < TARGET_AUC).any():
        print(f"FAILED: AUC {low.round(3).to_dict()} is below {TARGET_AUC}", file=sys.stderr)
        return 1
    return 0


def varied(sample: world.WorldSample, rng: np.random.Generator) -> world.WorldSample:
    """The sample with more ground around its shape, so that images differ in size, and lit from its right and below.

    The light says where a patch is. A trained tower knows that by itself, from neighbours and edges alone; this one has
    a minute to learn.
    """
    wider, higher = ((int(side) - world.IMAGE_PX) // 2 for side in rng.choice(SIDES_PX, 2))
    pixels = np.asarray(Image.open(io.BytesIO(sample.image_png)), dtype=float)
    pixels = np.pad(pixels, ((higher, higher), (wider, wider), (0, 0)), mode="edge")
    pixels[..., 0] += np.linspace(0, LIGHT, pixels.shape[1])
    pixels[..., 2] += np.linspace(0, LIGHT, pixels.shape[0])[:, None]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, format="PNG")
    return replace(sample, image_png=file.getvalue())


def sample_of(sample: world.WorldSample, *, with_image: bool) -> Sample:
    """The conversation with the clean caption; without its image it is words alone, as a real reference has read."""
    question = f"{IMAGE_MARK}\n{sample.question}" if with_image else sample.question
    turns = (Turn(role="user", content=question), Turn(role="assistant", content=sample.clean_caption))
    return Sample(sample_id=sample.sample_id, images=(), messages=turns)


def build(directory: Path, texts: Iterable[str]) -> None:
    """Saves a random tiny Qwen2.5-VL with its processor."""
    tokenizer = build_tokenizer(texts)
    tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO, START, END]})
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(
            patch_size=PATCH_PX, size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84}, image_mean=[0.15] * 3,
            image_std=[0.3] * 3,
        ),
        tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE,
    )  # fmt: skip
    width = {"hidden_size": 128, "intermediate_size": 256}
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in (
        ("image_token_id", IMAGE), ("video_token_id", VIDEO), ("vision_start_token_id", START),
        ("vision_end_token_id", END),
    )}  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "out_hidden_size": 128,
            "patch_size": PATCH_PX, "window_size": 112, "fullatt_block_indexes": [1],
        },
        text_config={
            **width, "vocab_size": len(tokenizer), "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 1024, "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.08,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [4, 6, 6]},
        },
        initializer_range=0.08, **ids,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    # Qwen's own start is small, for towers a hundred times as wide, and its biases are 0, which lets no head of
    # attention know a neighbour by its place; those of trained Qwens are large. A minute is too short for that.
    for name, parameter in model.named_parameters():
        if "visual" in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("qkv.bias"):
            torch.nn.init.normal_(parameter.data.chunk(3)[0], std=1.0)
            torch.nn.init.normal_(parameter.data.chunk(3)[1], std=1.0)
        elif name.endswith(("q_proj.bias", "k_proj.bias")):
            torch.nn.init.normal_(parameter, std=1.0)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def train_reference(
    start: Path, directory: Path, samples: Sequence[world.WorldSample], num_steps: int, *, batch_size: int = 48
) -> list[float]:
    """Trains the model of `start` on clean captions and saves it in `directory`; returns the loss of each step.

    One row in ten is its words alone. Rows are encoded and padded as `cal-precompute` does it.
    """
    processor = load_processor(start)
    encoder = Encoder(processor)
    rows = []
    for number, sample in enumerate(samples):
        with_image = number % 10 > 0
        images = [Image.open(io.BytesIO(sample.image_png))] if with_image else []
        rows.append(encoder(sample_of(sample, with_image=with_image), images))
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
    is_matrix = {
        name: p.dim() == 2 and "embed" not in name and "head" not in name for name, p in model.named_parameters()
    }
    matrices, others = (
        [p for name, p in model.named_parameters() if is_matrix[name] == kind] for kind in (True, False)
    )
    optimizers = (
        torch.optim.Muon(matrices, lr=1.2e-2, weight_decay=0.01),
        torch.optim.AdamW(others, lr=2e-3, weight_decay=0.01, betas=(0.9, 0.98)),
    )
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            each, each.defaults["lr"], total_steps=num_steps, pct_start=0.1, cycle_momentum=False
        )
        for each in optimizers
    ]
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(num_steps):
        chosen = torch.randint(len(rows), (batch_size,), generator=generator).tolist()
        batch = collate([rows[index] for index in chosen], pad_token_id=encoder.pad_token_id)
        states = model.model(**batch.inputs, use_cache=False).last_hidden_state
        labels = batch.labels[:, 1:]
        supervised = labels != IGNORE_INDEX
        loss = functional.cross_entropy(model.lm_head(states[:, :-1][supervised]), labels[supervised])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for step in (*optimizers, *schedules):
            step.step()
        losses.append(loss.item())
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return losses


def train(start: Path, output: Path, num_steps: int, *flags: object) -> None:
    call("cal-train", "--model_name_or_path", start, "--output_dir", output, *flags, "--trainable", "all",
         "--max_steps", num_steps, "--learning_rate", "2e-3", "--per_device_train_batch_size", 32,
         "--warmup_steps", 0.1, "--lr_scheduler_type", "cosine", "--use_cpu", "true", "--save_strategy", "no",
         "--logging_steps", 50, "--disable_tqdm", "true", "--cache_dir", output.parent / "cache",
         log=output.with_suffix(".log"))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
