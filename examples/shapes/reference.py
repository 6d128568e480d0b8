"""Builds and trains a tiny LLaVA for the world of shapes: from config classes, on clean captions, in plain torch.

`build_reference` saves a random start with tokenizer and processor; `train_reference` turns it into a reference.
Both folders load with `AutoProcessor` and `AutoModelForImageTextToText`, on a machine without torchvision too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from tokenizer import CHAT_TEMPLATE, IMAGE_TOKEN, build_tokenizer
from world import IMAGE_PX, WorldSample

IGNORE_INDEX = -100
PATCH_PX = 14


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSet:
    """Samples padded to one length, on the right."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64
    labels: Tensor  # [B, T] int64, unshifted; IGNORE_INDEX but at the answer's tokens and its eos
    pixel_values: Tensor  # [B, 3, IMAGE_PX, IMAGE_PX] float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Of a tiny LLaVA; its feed-forward layers are twice as wide."""

    vision_width: int = 96
    text_width: int = 128
    num_layers: int = 2  # of each
    patch_px: int = PATCH_PX


def build_reference(directory: Path, texts: Iterable[str], seed: int, size: Size = Size()) -> None:
    """Save a tiny random LLaVA with tokenizer and processor in `directory`.

    The tokenizer is byte-level, so any text encodes; the words of `texts` are single tokens.
    """
    tokenizer = build_tokenizer(texts)
    image_processor = LlavaImageProcessorPil(
        size={"shortest_edge": IMAGE_PX},
        crop_size={"height": IMAGE_PX, "width": IMAGE_PX},
        image_mean=[0.15] * 3,  # about the dark ground of the world's images, so that the ground is near zero
        image_std=[0.3] * 3,
    )
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=size.patch_px,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's CLS, which "default" takes away again
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(_config(tokenizer, size))
    # CLIP starts places and patches with the same spread per weight; a patch sums over 588 pixels and would drown
    # its place, and a minute of training is too short to dig it out again.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def train_reference(
    start: Path,
    directory: Path,
    samples: Sequence[WorldSample],
    *,
    seed: int,
    num_steps: int = 400,
    batch_size: int = 48,
    learning_rate: float = 2e-3,
    image_dropout: float = 0.1,
    attention_dropout: float = 0.0,
) -> list[float]:
    """Train the model saved in `start` on the samples' clean captions and save it in `directory`.

    Returns the loss of each step, in nats per supervised token. `image_dropout` is the share of training samples whose
    image tokens are hidden from attention while the text keeps its positions: it stands for the text without images
    that the language model of a real reference was trained on before it saw any image. With 0 the text without its
    image is new to the reference when it measures, and the logits of fillers fall as well (README.md has numbers);
    `attention_dropout` in the language model makes it bear that too, but less well.
    """
    torch.manual_seed(seed)  # for attention dropout
    processor = AutoProcessor.from_pretrained(start)
    config = AutoConfig.from_pretrained(start)
    config.text_config.attention_dropout = attention_dropout
    model = AutoModelForImageTextToText.from_pretrained(start, config=config, dtype=torch.float32)
    encoded = encode(processor, samples)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.1)
    model.train()
    losses = []
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        if len(order) < batch_size:
            order = torch.randperm(len(samples), generator=generator)
        rows, order = order[:batch_size], order[batch_size:]
        loss = _batch_loss(model, encoded, rows, hidden=torch.rand(len(rows), generator=generator) < image_dropout)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    model.config.text_config.attention_dropout = 0.0  # of this training, not of the model
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return losses


def encode(processor: LlavaProcessor, samples: Sequence[WorldSample]) -> EncodedSet:
    """Encode images and clean captions with the processor; the answers' words and eos are supervised."""
    conversations = [_conversation(sample) for sample in samples]
    images = [[Image.open(io.BytesIO(sample.image_png))] for sample in samples]
    prompts = [
        processor.apply_chat_template(conversation[:1], add_generation_prompt=True) for conversation in conversations
    ]
    texts = [processor.apply_chat_template(conversation) for conversation in conversations]
    batch = processor(text=texts, images=images, padding=True, return_tensors="pt")
    # An answer starts with a space, where the tokenizer always cuts: the prompt's tokens begin the whole's, and what
    # the whole has more, image placeholders counted once in both, is the answer.
    num_answer_tokens = _num_tokens(processor, texts) - _num_tokens(processor, prompts)
    num_tokens = batch["attention_mask"].sum(1)
    position = torch.arange(batch["input_ids"].shape[1])
    is_answer = (position >= (num_tokens - num_answer_tokens)[:, None]) & (position < num_tokens[:, None])
    return EncodedSet(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        labels=batch["input_ids"].masked_fill(~is_answer, IGNORE_INDEX),
        pixel_values=batch["pixel_values"],
    )


def _num_tokens(processor: LlavaProcessor, texts: list[str]) -> Tensor:
    return torch.tensor([len(input_ids) for input_ids in processor.tokenizer(texts)["input_ids"]])


def _conversation(sample: WorldSample) -> list[dict[str, object]]:
    return [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"\n{sample.question}"}]},
        {"role": "assistant", "content": [{"type": "text", "text": sample.clean_caption}]},
    ]


def _batch_loss(model: LlavaForConditionalGeneration, encoded: EncodedSet, rows: Tensor, *, hidden: Tensor) -> Tensor:
    """Mean nll of the supervised tokens of `rows` [B]; where `hidden` [B] is true the image is out of attention."""
    num_tokens = int(encoded.attention_mask[rows].sum(1).max())
    input_ids = encoded.input_ids[rows, :num_tokens]
    attention_mask = encoded.attention_mask[rows, :num_tokens].clone()
    attention_mask[hidden[:, None] & (input_ids == model.config.image_token_id)] = 0
    states = model.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=torch.arange(num_tokens).expand(len(rows), -1),
        pixel_values=encoded.pixel_values[rows],
        use_cache=False,
    ).last_hidden_state
    labels = encoded.labels[rows, 1:num_tokens]
    supervised = labels != IGNORE_INDEX
    return functional.cross_entropy(model.lm_head(states[:, :-1][supervised]), labels[supervised])


def _config(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlavaConfig:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=2 * size.vision_width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=size.patch_px,
        initializer_range=0.03,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        tie_word_embeddings=False,
        **ids,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        initializer_range=0.08,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(IMAGE_PX // size.patch_px) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **ids,
    )
