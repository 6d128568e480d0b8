"""One family of models: how its tiny checkpoint is written, and what is said of it in docs/models.md."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers as hf

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.load_check import check_model
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.spec import ContrastSpec, Template
from cal_trainer.run.parameters import PARTS
from examples_of import conversation
from families.case import Case
from tiny_models import HIDDEN, build, sample_image, text_config_values, train_tokenizer

LAYERS: Final[dict[str, Any]] = {
    "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
"""Shape of a decoder or a vision tower of the usual names."""
BUILDERS: Final = Path(__file__).parent / "builders"


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family that goes through its own processor, from files to a trained checkpoint."""

    name: str
    """Its row in docs/models.md: `model_type` with underscores."""
    build: Callable[[Path], None]
    """Writes a tiny checkpoint with weights, processor, tokenizer and chat template into a directory."""
    markers: tuple[str, ...]
    """Texts of tokens that the processor inserts for an image: all of them are dropped, and stand nowhere else."""
    around: tuple[str, ...] = ()
    """Tokens that the chat template writes around an image: words to this project, never dropped."""
    found_by: str = "report"
    """How the tokens of an image are located; docs/models.md explains the words."""
    attention: str = "sdpa"
    template: Template = "auto"
    one_turn: bool = False
    """Whether its processor takes one question and one answer only."""
    one_image: str = ""
    """Why every row has exactly one image, or nothing."""
    one_by_one: str = ""
    """What the check at load must say (a pattern) of rows that see their neighbours, or nothing where none does."""
    rows_of_a_step: int = 2
    """How many rows may share a micro-batch of training."""
    parts: tuple[str, ...] = PARTS
    """What it has of the parts that can be trained."""

    @property
    def end_to_end(self) -> str:
        """What the last column says once it has run."""
        return "yes"

    def load(self, directory: Path) -> tuple[Any, Encoder]:
        """The checkpoint's model in float32 and its encoder, as the pipeline loads them."""
        encoder = Encoder(load_processor(directory), template=self.template)
        return load_reference(directory, dtype="float32", attn_implementation=self.attention), encoder

    def make(self, directory: Path) -> Case:
        """The tiny model and ragged samples through the processor: one image, several turns, two images, none."""
        self.build(directory)
        model, encoder = self.load(directory)
        given = [
            (["<image>\nWhat is this?", "A red cat on the table."], [(60, 40)]),
            (["<image>\nDescribe the image in a few words.", "A small dog sits next to a large cat."], [(90, 50)]),
        ]
        if not self.one_turn:
            given.append((["Look: <image>\nWhat?", "A dog.", "And where is it?", "On the left, I think."], [(40, 70)]))
        if not self.one_image:
            given.append((["<image>\n<image>\nAnd these?", "The second shows a small dog."], [(50, 50), (80, 30)]))
            given.append((["How are you?", "Fine, and the bus is behind the tree."], []))
        samples = [
            encoder(conversation(*turns), [sample_image(10 * row + n, size) for n, size in enumerate(sizes)])
            for row, (turns, sizes) in enumerate(given)
        ]
        check_model(model, encoder, ContrastSpec(), self.name)
        assert bool(encoder.one_by_one) == bool(self.one_by_one), encoder.one_by_one
        assert re.match(self.one_by_one, encoder.one_by_one or "")
        return Case(
            model=model, samples=samples, pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs,
            uniform_shape_batches=encoder.uniform_shape_batches, found_by=self.found_by,
            one_by_one=encoder.one_by_one, two_images=self.one_image or "yes", text_only=self.one_image or "yes",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyOfIds:
    """A family whose samples are token ids as its processor would write them."""

    name: str
    case: Callable[[], Case]
    end_to_end: str
    """Why its processor is not run, as the last column says it: `no: …` or `refused: …`."""
    parts: tuple[str, ...] = PARTS

    def make(self, directory: Path) -> Case:
        """The tiny model and samples for it."""
        return self.case()


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedFamily:
    """A family that is refused when it is loaded and checked, by a general rule."""

    name: str
    build: Callable[[Path], None]
    """Writes a tiny checkpoint with its processor into a directory."""
    says: str
    """What the error must say (a pattern)."""
    reason: str
    """The same for its row, with the way out."""
    perturbed: bool = False
    """Whether a contrast with perturbed images passes the check."""
    attention: str = "sdpa"

    def check(self, directory: Path, contrast: ContrastSpec) -> None:
        """What a worker proves of the checkpoint at load; raises ConfigError."""
        encoder = Encoder(load_processor(directory))
        model = load_reference(directory, dtype="float32", attn_implementation=self.attention)
        check_model(model, encoder, contrast, self.name)


AnyFamily = Family | FamilyOfIds


def discovered() -> dict[str, AnyFamily | RefusedFamily]:
    """Every family that a module of `builders` defines, by name."""
    found: dict[str, AnyFamily | RefusedFamily] = {}
    for module in pkgutil.iter_modules([str(BUILDERS)]):
        values: Sequence[Any] = list(vars(importlib.import_module(f"families.builders.{module.name}")).values())
        for family in values:
            if isinstance(family, AnyFamily | RefusedFamily):
                assert found.setdefault(family.name, family) is family, f"{family.name} is defined twice"
    return found


def chatml_tokenizer(*special: str, **named: str) -> hf.PreTrainedTokenizerFast:
    """A tokenizer with Qwen's ends of turns; `named` tokens are attributes of it that a processor reads."""
    every = ["<|im_start|>", *special, *named.values()]
    return train_tokenizer(
        bos="<|endoftext|>", eos="<|im_end|>", pad="<|pad|>", add_bos=False, special=every, named=named
    )


def text_values(tokenizer: hf.PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Values of a text config of the usual names, with the tokenizer's sizes and ids."""
    return {**text_config_values(tokenizer), **more}


def chat(image: str, *, user: str, assistant: str, end: str, begin: str = "") -> str:
    """A template in which every turn is a header, its parts in order, and an end token."""
    header = f"({user!r} if m['role'] == 'user' else {assistant!r})"
    parts = f"{{{{ {image!r} if part['type'] == 'image' else part['text'] }}}}"
    return (
        f"{{{{ {begin!r} }}}}{{% for m in messages %}}{{{{ {header} }}}}"
        "{% if m['content'] is string %}{{ m['content'] }}"
        f"{{% else %}}{{% for part in m['content'] %}}{parts}{{% endfor %}}{{% endif %}}{{{{ {end!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant!r} }}}}{{% endif %}}"
    )


def save(directory: Path, model_class: Any, config: Any, processor: Any) -> None:
    model = build(model_class, config)
    for name, parameter in model.named_parameters():
        if name.endswith(("_gate", "_vision_alpha")):  # Mllama's and Deepseek's start at 0: images would change nothing
            torch.nn.init.constant_(parameter, 0.7)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
