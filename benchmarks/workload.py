"""Writes what `cal-precompute` and `cal-train` work on in benchmarks: a checkpoint, and shards of images and talk.

Images are JPEGs of about COCO's size; answers vary in length as captions and conversations do.
"""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import transformers as hf
from PIL import Image

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.models.loading import load_reference
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import annotated_schema
from cal_schemas.metadata import Carry, ShardMetadata, ShardSource
from cal_schemas.spec import ContrastSpec, InputSpec, LabelSpec, MeasurementSpec
from shapes import IMAGE_TOKEN, PAD_TOKEN, PATCH, Shape, build_model

sys.path.append(str(Path(__file__).parent.parent / "examples" / "shapes"))

from tokenizer import CHAT_TEMPLATE, build_tokenizer

_WORDS = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "lmnrst"]
_QUESTION = "bal bam ban bar"
_IMAGE_SIZES = ((640, 480), (480, 640), (640, 427), (500, 375))
_AROUND_ANSWER = 12
"""Tokens of the question and the template."""
_SPREAD = 0.6
"""Of the logarithm of an answer's length."""
_SOURCE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)


def write_checkpoint(folder: Path, shape: Shape) -> Any:
    """A model of this shape with its tokenizer and processor; returns the processor."""
    tokenizer = build_tokenizer([" ".join(_WORDS)])
    assert tokenizer.pad_token_id == PAD_TOKEN
    assert len(tokenizer) <= shape.vocabulary, (len(tokenizer), shape.vocabulary)
    side = round(shape.tile_tokens**0.5) * PATCH
    pixels = hf.LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = hf.LlavaProcessor(
        pixels, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    assert processor.image_token_id == IMAGE_TOKEN
    build_model(shape).save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


def write_source(
    folder: Path, rows_per_shard: list[int], text_tokens: int, *, images: int = 1, every_text_only: int = 0
) -> None:
    """Parquet shards with embedded images, so many a row; of every so many rows, one has none."""
    rng = np.random.default_rng(0)
    pictures = [{"bytes": _jpeg(rng, size), "path": None} for size in _IMAGE_SIZES * 4]
    folder.mkdir(parents=True)
    number = 0
    for shard, num_rows in enumerate(rows_per_shard):
        rows = []
        for _ in range(num_rows):
            text_only = bool(every_text_only) and number % every_text_only == every_text_only - 1
            shown = [] if text_only else [pictures[(number + image) % len(pictures)] for image in range(images)]
            rows.append(
                {
                    "id": str(number),
                    "images": shown,
                    "messages": [
                        {"role": "user", "content": "<image>" * len(shown) + _QUESTION},
                        {"role": "assistant", "content": draw_answer(rng, text_tokens)},
                    ],
                }
            )
            number += 1
        pq.write_table(pa.Table.from_pylist(rows, _SOURCE_SCHEMA), folder / f"{shard:05d}.parquet")


def write_images(folder: Path, rng: np.random.Generator) -> list[str]:
    """Writes a few JPEGs; returns their names."""
    folder.mkdir()
    names = [f"{number}.jpg" for number in range(len(_IMAGE_SIZES))]
    for name, size in zip(names, _IMAGE_SIZES, strict=True):
        (folder / name).write_bytes(_jpeg(rng, size))
    return names


def draw_answer(rng: np.random.Generator, text_tokens: int) -> str:
    """Words of one token each."""
    return " ".join(rng.choice(_WORDS, draw_text_tokens(rng, text_tokens) - _AROUND_ANSWER))


def draw_text_tokens(rng: np.random.Generator, mean: int) -> int:
    """Tokens of a sample's text, with this mean; log-normal, as answers of conversations about are."""
    drawn = rng.lognormal(np.log(mean - _AROUND_ANSWER) - _SPREAD**2 / 2, _SPREAD)
    return _AROUND_ANSWER + int(np.clip(round(drawn), 1, 4 * mean))


def _jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    coarse = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


SYNTHETIC = MeasurementSpec(
    label=LabelSpec(tokenizer_digest="0", chat_template_digest="0", template="auto"),
    input=InputSpec(
        image_processor="none", image_processor_backend="pil", image_processor_digest="0", image_aspect_ratio="native",
        max_length=2048, truncation="drop",
    ),
    contrast=ContrastSpec(),
    dtype="float32",
    attn_implementation="sdpa",
    model_id="none",
    revision=None,
    weights_digest="0",
    reference_saw_data="unknown",
)  # fmt: skip
"""Of shards whose deltas nobody measured."""


def synthetic_metadata(rows: int, *, spec: MeasurementSpec = SYNTHETIC, carry: Carry = "paths") -> ShardMetadata:
    source = ShardSource(
        uri="/synthetic", data_path="synthetic", image_folder=None, num_rows=rows, size=1, mtime_ns=1, row_start=0,
        row_stop=rows,
    )  # fmt: skip
    return ShardMetadata(spec=spec, source=source, carry=carry, tokens_per_batch=1)


def measurement(encoder: Encoder, contrast: ContrastSpec | None = None) -> MeasurementSpec:
    """The spec of a run in this process."""
    return replace(
        SYNTHETIC, label=label_spec(encoder), input=input_spec(encoder), contrast=contrast or ContrastSpec(),
        model_id="benchmark", reference_saw_data="no",
    )  # fmt: skip


def annotate_options(tokens_per_batch: int, carry: Carry = "images") -> AnnotateOptions:
    return AnnotateOptions(schema=annotated_schema(carry=carry), carry=carry, tokens_per_batch=tokens_per_batch)


def annotate(
    source: Path, output: Path, model: Path, encoder: Encoder, *, tokens_per_batch: int = 16384, carry: Carry = "images"
) -> None:
    """Measures all shards of `source` in this process."""
    store = LocalStore(output_dir=output)
    store.prepare()
    reference = load_reference(model, dtype="float32", device="cpu")
    for shard in plan_shards([str(source)]):
        annotate_shard(
            shard, encoder=encoder, model=reference, spec=measurement(encoder), store=store,
            options=annotate_options(tokens_per_batch, carry),
        )  # fmt: skip
