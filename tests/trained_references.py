"""Tiny references of each family, trained until their logits have the size of a real model's.

Random weights give logits of about 3, which half precision rounds too little to show what it does to a trained model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import label_logits
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.models.mini_gemini.convert import convert
from cal_trainer.objective.label_rows import label_rows, supervised_ids
from examples_of import conversation
from mini_gemini_data import MINI_GEMINI
from tiny_models import FAMILIES, sample_image

ANSWERS = ("A red cat sits on the table.", "Three green circles.", "The car is dark grey.", "No, it is a bus.")
TRAINED_RMS = 8.0
"""Of the labels' logits, at least: LLaVA-1.5's are between 10 and 20."""


def trained(name: str, directory: Path) -> Path:
    """A reference of the family, saved below `directory`; HD images are shown to the weights of small ones."""
    (FAMILIES | MINI_GEMINI)[name.removesuffix("_hd")](directory / "start")
    train(directory / "start", directory / "trained")
    if not name.endswith("_hd"):
        return directory / "trained"
    convert(directory / "trained", output=directory / "hd", hd=True)
    return directory / "hd"


def train(start: Path, directory: Path, *, steps: int = 60) -> None:
    """Saves in `directory` the model of `start`, trained to say ANSWERS of images; its towers stay as they are."""
    processor = load_processor(start)
    encoder = Encoder(processor)
    samples = [
        encoder(conversation("<image>\nWhat is in the image?", answer), [sample_image(number)])
        for number, answer in enumerate(ANSWERS)
    ]
    model = load_reference(start, dtype="float32", device="cpu").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("vision" not in name)
    batch = collate(samples, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    label_ids = supervised_ids(batch.labels)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        with label_rows(model, batch.labels):
            logits = model(**batch.inputs, use_cache=False).logits[0]
        optimizer.zero_grad()
        F.cross_entropy(logits, label_ids).backward()
        optimizer.step()
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)


def label_logits_rms(model: Any, encoder: Encoder) -> float:
    """Of the answer that the model was trained to give to its first image."""
    sample = encoder(conversation("<image>\nWhat is in the image?", ANSWERS[0]), [sample_image(0)])
    batch = collate([sample], pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    with torch.no_grad():
        return float(label_logits(model, batch.inputs, batch.labels).square().nanmean().sqrt())
