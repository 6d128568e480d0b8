"""Makes what students start from, as LLaVA does from CLIP and Vicuna: a tower and a language model that are trained.

One of each for all seeds of a world; a student's projector starts from noise of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText, AutoProcessor

import worlds
from condition import SIZES
from reference import encode


def train_tower(directory: Path, world: str, seed: int) -> None:
    """Trains the tower of the model saved there to tell the attributes of clean images, in place.

    From the mean over its patches, so that whoever attends to them finds the attributes. Stands for CLIP; no caption is
    involved.
    """
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    samples = worlds.draw(world, SIZES.tower_samples, seed=seed)
    pixels = encode(AutoProcessor.from_pretrained(directory), samples).pixel_values
    scenes: list[Any] = [sample.scene for sample in samples]  # of a dataclass, which one is the world's affair
    attributes = [asdict(scene) for scene in scenes]
    classes = {name: sorted({scene[name] for scene in attributes}) for name in attributes[0]}
    wanted = {
        name: torch.tensor([values.index(scene[name]) for scene in attributes]) for name, values in classes.items()
    }  # fmt: skip
    tower = model.model.vision_tower
    heads = nn.ModuleDict({
        name: nn.Linear(model.config.vision_config.hidden_size, len(values)) for name, values in classes.items()
    })  # fmt: skip
    parameters = [*tower.parameters(), *heads.parameters()]
    num_steps, rate = SIZES.tower_steps, SIZES.tower_learning_rate
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=num_steps, pct_start=0.1)
    for _ in range(num_steps):
        rows = torch.randint(len(samples), (SIZES.tower_batch_size,))
        features = tower(pixels[rows]).last_hidden_state[:, 1:].mean(1)
        logits = {name: head(features) for name, head in heads.items()}
        loss = torch.stack([functional.cross_entropy(logits[name], wanted[name][rows]) for name in heads]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    model.save_pretrained(directory)


def with_new_projector(backbone: Path, directory: Path, seed: int) -> None:
    """Saves the model and processor of `backbone` with a projector that was never trained."""
    model = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32)
    torch.manual_seed(seed)
    model.model.multi_modal_projector.apply(_initialised)
    model.save_pretrained(directory)
    AutoProcessor.from_pretrained(backbone).save_pretrained(directory)


def _initialised(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=SIZES.projector_std)
        nn.init.zeros_(module.bias)
