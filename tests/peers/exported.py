"""What other trainers train on: rows of a tiny model as `cal-inspect export` writes them; and their programs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from annotated_data import annotate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect.cli import EXIT_DONE, run
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.spec import AspectRatio
from peers.tiny_qwen import build_tiny_qwen
from tiny_models import sample_image

ROOT = Path(__file__).parents[2]
SIZE = (56, 84)
"""Of every image: whole tokens, so that no trainer resizes it in its own way."""


def in_peer(name: str, program: str, *arguments: object, cwd: Path, **environment: str) -> str:
    """What a program of a peer's environment said, its exit status in the last line; our packages are not there."""
    home = Path(os.environ["CAL_PEERS"]).resolve() / name
    done = subprocess.run(
        [home / "bin" / program, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=900,
        env={
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "tests" / "torchvision_for_tests"),
            "HOME": str(cwd), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment,
        },
    )  # fmt: skip
    return f"{done.stdout}{done.stderr}\nexit status {done.returncode}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """Measured rows of a tiny Qwen2.5-VL, the odd ones of two turns, as `cal-inspect export` writes them."""

    model: Path
    data: Path
    encoder: Any

    @property
    def about(self) -> Path:
        return self.data.with_name("cal_export.json")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data.read_text().splitlines()]

    def losses_by_hand(self, model: Any, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Negative log-likelihoods and weights of each row's supervised tokens, one row at a time."""
        for row in rows:
            images = self.encoder.processor.image_processor(
                [Image.open(self.data.parent / name) for name in row["images"]], return_tensors="pt"
            )
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            kinds = (ids == self.encoder.processor.image_token_id).long()
            logits = model(input_ids=ids, mm_token_type_ids=kinds, **images).logits[0, :-1]
            supervised = labels[1:] != -100
            nll = F.cross_entropy(logits[supervised], labels[1:][supervised], reduction="none")
            yield nll, torch.tensor(row["loss_weights"])[1:][supervised]

    def mean_by_hand(self, model: Any, rows: Sequence[dict[str, Any]], *, uniform: bool = False) -> torch.Tensor:
        """sum(w * nll) / sum(w) over all the rows."""
        pairs = [(nll, torch.ones_like(w) if uniform else w) for nll, w in self.losses_by_hand(model, rows)]
        return torch.stack([(w * nll).sum() for nll, w in pairs]).sum() / sum(w.sum() for _, w in pairs)


def measure_and_export(folder: Path, *, image_aspect_ratio: AspectRatio = "native", **settings: int) -> Exported:
    """Builds the model, measures nine rows and exports them, all in `folder`; `settings` as of --processor_kwargs."""
    build_tiny_qwen(folder / "model")
    processor = load_processor(folder / "model", kwargs=settings)
    encoder = Encoder(processor, image_aspect_ratio=image_aspect_ratio, processor_kwargs=settings)
    (folder / "images").mkdir()
    rows = []
    for number in range(8):
        sample_image(number, SIZE).save(folder / "images" / f"{number}.png")
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the image?"},
            {"from": "gpt", "value": "A red cat sits on the table. " * (number % 3) + "Yes."},
        ]
        if number % 2:
            turns += [{"from": "human", "value": "And where?"}, {"from": "gpt", "value": "On the left."}]
        rows.append({"id": f"row-{number}", "image": f"{number}.png", "conversations": turns})
    # Tokenized in one piece, the line breaks before and in this answer are one token.
    rows.append({"id": "breaks", "image": "0.png", "conversations": [rows[0]["conversations"][0],
                                                                    {"from": "gpt", "value": "\n\nYes."}]})  # fmt: skip
    (folder / "data.json").write_text(json.dumps(rows))
    model = load_reference(folder / "model", dtype="float32")
    shards = plan_shards([str(folder / "data.json")], [str(folder / "images")])
    annotate(folder / "annotated", shards, encoder, model)
    command = ["export", folder / "annotated", "--to", "messages-jsonl", "--output", folder / "weights",
               "--model_name_or_path", folder / "model"]  # fmt: skip
    assert run(list(map(str, command))) == EXIT_DONE
    return Exported(model=folder / "model", data=folder / "weights" / "data.jsonl", encoder=encoder)
