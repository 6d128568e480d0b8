"""Somebody else's training loop on cached deltas: plain torch, no Trainer.

    python examples/foreign_loop.py MODEL ANNOTATED OUTPUT LEARNING_RATE

MODEL is a directory or hub id, ANNOTATED what cal-precompute wrote. Prints the loss of each step.
One process, no accumulation: with either, divide by the summed weights of the whole optimizer step instead.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_pipeline import Encoder
from cal_trainer import (
    AnnotatedExamples,
    ExampleCollator,
    StepBatch,
    at_rows,
    label_rows,
    supervised_ids,
    token_weights,
    weighted_nll,
)

BATCH_SIZE, EPOCHS = 8, 3
ALPHA, BETA, WINDOW = 1.0, 5.0, 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def train(model_name: str, annotated: Path, output: Path, learning_rate: float) -> None:
    model = AutoModelForImageTextToText.from_pretrained(model_name, dtype=torch.float32).to(DEVICE).train()
    processor = AutoProcessor.from_pretrained(model_name)
    encoder = Encoder(processor)  # template, max_length, … as in cal-precompute
    # Compares tokenizer and template with the measurement now, and the label ids of every row when it is read.
    examples = AnnotatedExamples(annotated, encoder)
    collate = ExampleCollator(encoder=encoder, dummy=examples.blank.encoded)
    loader = DataLoader(examples, batch_size=BATCH_SIZE, shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(EPOCHS):
        for batch in loader:
            batch = StepBatch.of({name: value.to(DEVICE) for name, value in batch.items()})
            weights = token_weights(batch.deltas, batch.labels, alpha=ALPHA, beta=BETA, window=WINDOW)
            weights = at_rows(weights, batch.labels)  # [N], one for each row of logits
            with label_rows(model, batch.labels):
                logits = model(**batch.inputs, use_cache=False).logits[0]  # [N, V]
            # With ALPHA 1 the sum is below 1 only where nothing is supervised; the loss is then 0.
            loss = weighted_nll(logits, supervised_ids(batch.labels), weights) / weights.sum().clamp(min=1e-6)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print(f"loss {loss.item():.6f}", flush=True)
    model.save_pretrained(output)
    processor.save_pretrained(output)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
