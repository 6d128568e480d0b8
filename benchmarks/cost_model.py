"""Predicts the cost of a sample by arithmetic: floating-point operations of the passes, bytes that they make and store.

Counts what torch's counter counts: matrix products, convolutions and attention (two operations a multiply-add; scores
over the whole square, although a causal kernel skips half of them). `tests/test_cost.py` holds it against that counter.
T tokens of a sample, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from shapes import PATCH, QWEN_FULL_ATTENTION, QWEN_WINDOW, Shape

MEASURED_BYTES_PER_TOKEN = 4.85
"""Of label_ids, label_positions and delta_logits in an annotated shard (`storage.py`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleCost:
    """Operations of one sample, by part; `text` tokens are those that the second pass keeps."""

    vision: float
    decoder: float
    """One pass over all tokens."""
    decoder_text: float
    """One pass over the kept tokens."""
    head: float
    """Logits of every position over the whole vocabulary."""

    @property
    def plain(self) -> float:
        """F, the unit: one forward with full logits."""
        return self.vision + self.decoder + self.head

    @property
    def released(self) -> float:
        """The vision tower once, decoder and head twice."""
        return self.plain + self.decoder + self.head

    @property
    def drop(self) -> float:
        """Ours; the label-only LM head's N products are not worth counting."""
        return self.vision + self.decoder + self.decoder_text

    @property
    def with_image(self) -> float:
        """The first of our passes alone."""
        return self.vision + self.decoder


def sample_cost(shape: Shape) -> SampleCost:
    """Of a sample of this shape."""
    return SampleCost(
        vision=_vision(shape),
        decoder=_decoder(shape, shape.num_tokens),
        decoder_text=_decoder(shape, shape.text_tokens),
        head=2.0 * shape.num_tokens * shape.hidden * shape.vocabulary,
    )


def _decoder(shape: Shape, tokens: int) -> float:
    queries, keys = shape.heads * shape.width_of_heads, shape.kv_heads * shape.width_of_heads
    weights = shape.hidden * (2 * queries + 2 * keys) + 3 * shape.hidden * shape.intermediate
    return shape.layers * (2.0 * tokens * weights + 4.0 * tokens**2 * queries)


def _vision(shape: Shape) -> float:
    hidden, layers = shape.vision_hidden, shape.vision_layers
    if shape.decoder == "qwen2_5_vl":
        patches = 4 * shape.image_tokens
        window = (QWEN_WINDOW // PATCH) ** 2
        full = sum(index < layers for index in QWEN_FULL_ATTENTION)
        weights = 4 * hidden**2 + 3 * hidden * shape.vision_intermediate
        attention = 4.0 * hidden * patches * (full * patches + (layers - full) * min(window, patches))
        merger = 2.0 * shape.image_tokens * ((4 * hidden) ** 2 + 4 * hidden * shape.hidden)
        embedding = 2.0 * patches * 3 * 2 * PATCH**2 * hidden
        return embedding + layers * 2.0 * patches * weights + attention + merger
    tiles, patches = shape.image_tokens // shape.tile_tokens, shape.tile_tokens
    tokens = patches + 1  # CLIP's CLS
    weights = 4 * hidden**2 + 2 * hidden * shape.vision_intermediate
    embedding = 2.0 * patches * 3 * PATCH**2 * hidden
    projector = 2.0 * patches * (hidden * shape.hidden + shape.hidden**2)
    return tiles * (embedding + layers * (2.0 * tokens * weights + 4.0 * tokens**2 * hidden) + projector)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleBytes:
    """Bytes of one sample."""

    weights: float
    """Of the model, in bfloat16: shared by all samples."""
    released_logits: float
    """Two passes of float32 logits [T, V], which the released way holds at once."""
    label_rows: float
    """Hidden rows and head rows of the supervised tokens, float32: what the label-only LM head makes instead."""
    pixels: float
    """What goes to the device, in bfloat16."""
    stored: float
    """Annotation in the shard."""


def sample_bytes(shape: Shape) -> SampleBytes:
    patches = shape.image_tokens * (4 if shape.decoder == "qwen2_5_vl" else 1)
    frames = 2 if shape.decoder == "qwen2_5_vl" else 1
    return SampleBytes(
        weights=2.0 * num_weights(shape),
        released_logits=2 * 4.0 * shape.num_tokens * shape.vocabulary,
        label_rows=2 * 4.0 * shape.supervised_tokens * shape.hidden,
        pixels=2.0 * 3 * patches * frames * PATCH**2,
        stored=MEASURED_BYTES_PER_TOKEN * shape.supervised_tokens,
    )


def num_weights(shape: Shape) -> float:
    """Of all matrices; norms, biases and places are left out."""
    queries, keys = shape.heads * shape.width_of_heads, shape.kv_heads * shape.width_of_heads
    decoder = shape.layers * shape.hidden * (2 * queries + 2 * keys + 3 * shape.intermediate)
    embeddings = (1 if shape.tied else 2) * shape.hidden * shape.vocabulary
    gates = 3 if shape.decoder == "qwen2_5_vl" else 2
    vision = shape.vision_layers * shape.vision_hidden * (4 * shape.vision_hidden + gates * shape.vision_intermediate)
    return float(decoder + embeddings + vision)
