"""A tower and a language model become one model that loads by the usual classes, with the weights of both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.assemble import Assembly, assemble, parse_assemble
from cal_pipeline.models.loading import load_processor, load_reference
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample, Turn
from cal_trainer.run.parameters import set_trainable
from examples_of import conversation
from tiny_models import sample_image, train_tokenizer

SIDE, HIDDEN = 28, 32
LAYERS = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA_CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TURNS = (Turn(role="user", content="<image>\nWhat is it?"), Turn(role="assistant", content="A red square."))


def save_vision(directory: Path, *, whole: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    vision = hf.CLIPVisionConfig(**LAYERS, image_size=SIDE, patch_size=14, projection_dim=HIDDEN)
    if whole:
        text = hf.CLIPTextConfig(**LAYERS, vocab_size=99, projection_dim=HIDDEN)
        model: Any = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=HIDDEN))
    else:
        model = hf.CLIPVisionModel(vision)
    model.to(dtype).save_pretrained(directory)
    hf.CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(directory)
    return directory


def save_language(
    directory: Path, kind: str = "llama", *, chat_template: str | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<unk>", add_bos=True)
    tokenizer.pad_token = None
    tokenizer.chat_template = chat_template
    sizes = {**LAYERS, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "max_position_embeddings": 512}
    config = {
        "llama": lambda: hf.LlamaConfig(**sizes),
        "mistral": lambda: hf.MistralConfig(**sizes, sliding_window=None),
        # As in Qwen2's small models: one matrix for both ends, with more rows than the tokenizer has entries.
        "qwen2": lambda: hf.Qwen2Config(**{**sizes, "vocab_size": 512}, tie_word_embeddings=True),
        "gemma2": lambda: hf.Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=0.01),
    }[kind]()
    model = hf.AutoModelForCausalLM.from_config(config)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, str], Path] = {}

    def get(what: str, kind: str = "") -> Path:
        if (what, kind) not in made:
            folder = tmp_path_factory.mktemp(what) / (kind or what)
            torch.manual_seed(3)
            made[what, kind] = (
                save_vision(folder, whole=kind == "whole") if what == "vision" else save_language(folder, kind)
            )
        return made[what, kind]

    return get


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("language", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("vision", ["", "whole"])
def test_both_parts_keep_their_weights(
    parts: Callable[..., Path], tmp_path: Path, kind: Any, language: str, vision: str
) -> None:
    output = tmp_path / "model"
    assemble(parts("vision", vision), parts("language", language), output, kind=kind)
    model = load_reference(output, dtype="float32")  # Which refuses a checkpoint with weights missing.
    tower = hf.CLIPVisionModel.from_pretrained(parts("vision", vision))
    decoder = hf.AutoModelForCausalLM.from_pretrained(parts("language", language))
    for ours, theirs in ((model.model.vision_tower, tower), (model.model.language_model, decoder.model)):
        weights, expected = ours.state_dict(), theirs.state_dict()
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            kept = weights[name][: len(value)] if value.dim() else weights[name]
            torch.testing.assert_close(kept, value, rtol=0, atol=0)
    head = decoder.lm_head.weight
    torch.testing.assert_close(model.lm_head.weight[: len(head)], head, rtol=0, atol=0)
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == (language == "qwen2")
    assert len(model.lm_head.weight) == (512 if language == "qwen2" else -(-(len(head) + 2) // 64) * 64)
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"
    assert (model.generation_config.pad_token_id, model.config.text_config.pad_token_id) == (
        load_processor(output).tokenizer.pad_token_id,
    ) * 2
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("template", ["plain", "vicuna_v1", "auto"])
def test_the_assembled_model_encodes_and_trains_its_projector(
    parts: Callable[..., Path], tmp_path: Path, kind: Any, template: Any
) -> None:
    assemble(parts("vision"), parts("language", "llama"), tmp_path / "model", kind=kind)
    processor = hf.AutoProcessor.from_pretrained(tmp_path / "model")
    assert list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    model = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    training = set_trainable(model, ["projector"])
    assert len(training) == (4 if kind == "llava" else 5)
    encoder = Encoder(processor, template=template)
    encoded = encoder(Sample(sample_id="a", images=(), messages=TURNS), [sample_image(1, (80, 40))])
    if kind == "llava":
        assert int(encoded.image_mask.sum()) == 4
    batch = collate([encoded], pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs)
    model(**batch.inputs).logits.float().square().sum().backward()
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in training)


@pytest.mark.parametrize(
    "messages",
    [
        TURNS,
        (*TURNS, Turn(role="user", content="And now?"), Turn(role="assistant", content="A dog.")),
        (Turn(role="system", content="Be brief."), *TURNS),
        (Turn(role="user", content="It's 5 o'clock?"), Turn(role="assistant", content="No.")),
    ],
)
def test_the_default_chat_template_writes_what_vicuna_v1_writes(
    parts: Callable[..., Path], tmp_path: Path, messages: tuple[Turn, ...]
) -> None:
    assemble(parts("vision"), parts("language", "llama"), tmp_path / "model")
    processor = load_processor(tmp_path / "model")
    sample = conversation(messages=tuple(messages))
    rendered = [Encoder(processor, template=name).render(sample) for name in ("auto", "vicuna_v1")]
    assert rendered[0].text == rendered[1].text
    assert rendered[0].label_spans == rendered[1].label_spans
    words = [{"role": turn.role, "content": turn.content} for turn in messages]
    assert processor.apply_chat_template(words, tokenize=False) == rendered[0].text
    question = processor.apply_chat_template(words[:-1], tokenize=False, add_generation_prompt=True)
    assert question.endswith(" ASSISTANT:")
    assert rendered[0].text.startswith(question)


def test_a_language_models_own_template_is_kept_and_sees_the_image(parts: Callable[..., Path], tmp_path: Path) -> None:
    save_language(tmp_path / "chat", chat_template=LLAMA_CHAT)
    assemble(parts("vision"), tmp_path / "chat", tmp_path / "model")
    processor = load_processor(tmp_path / "model")
    rendered = Encoder(processor).render(conversation(messages=tuple(TURNS)))
    assert rendered.text == "<|user|><image>\nWhat is it?</s>\n<|assistant|>A red square.</s>\n"
    (start, stop) = rendered.label_spans[0]
    assert rendered.text[start:stop] == "A red square.</s>"


def test_pinpoints_reach_processor_and_config(parts: Callable[..., Path], tmp_path: Path) -> None:
    assemble(parts("vision"), parts("language", "llama"), tmp_path / "a", kind="llava_next")
    default = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
    given = [[28, 56], [56, 28]]
    assemble(parts("vision"), parts("language", "llama"), tmp_path / "b", kind="llava_next", image_grid_pinpoints=given)
    for name, expected in (("a", default), ("b", given)):
        assert load_processor(tmp_path / name).image_processor.image_grid_pinpoints == expected
        assert hf.AutoConfig.from_pretrained(tmp_path / name).image_grid_pinpoints == expected


def test_a_seed_decides_the_projector_and_leaves_torchs_own_alone(parts: Callable[..., Path], tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assemble(parts("vision"), parts("language", "llama"), tmp_path / name, seed=seed)
    assert torch.equal(state, torch.random.get_rng_state())
    first, again, other_seed = (load_reference(tmp_path / name, dtype="float32").state_dict() for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    different = {name for name in first if not torch.equal(first[name], other_seed[name])}
    assert {name for name in different if "projector" in name} == {n for n in first if "projector" in n}
    assert all("projector" in name or "embed" in name or "lm_head" in name for name in different)


def test_the_narrower_dtype_is_widened(parts: Callable[..., Path], tmp_path: Path) -> None:
    save_language(tmp_path / "half", dtype=torch.bfloat16)
    assemble(parts("vision"), tmp_path / "half", tmp_path / "model")
    model = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


def test_what_does_not_fit_is_refused_by_name(parts: Callable[..., Path], tmp_path: Path) -> None:
    vision, language = parts("vision"), parts("language", "llama")
    empty = tmp_path / "empty"
    empty.mkdir()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "README.md").touch()
    capped = save_language(tmp_path / "capped", "gemma2")
    cases: list[tuple[Any, Any, Path, dict[str, Any], str]] = [
        (language, language, tmp_path / "x", {}, "vision=.*'llama' model, not a CLIP"),
        (vision, vision, tmp_path / "x", {}, "language=.*'clip_vision_model' model, not a causal"),
        (vision, empty, tmp_path / "x", {}, "language=.*empty"),
        (tmp_path / "nowhere", language, tmp_path / "x", {}, "vision=.*nowhere"),
        (vision, language, taken, {}, "exists already"),
        (vision, capped, tmp_path / "x", {}, "Gemma2ForCausalLM does more with its logits"),
        (vision, language, tmp_path / "x", {"image_grid_pinpoints": [[28, 56]]}, "belong to kind llava_next"),
        (vision, language, tmp_path / "x", {"kind": "llava_next", "image_grid_pinpoints": [[30, 56]]}, "multiples"),
    ]
    for tower, decoder, output, options, message in cases:
        with pytest.raises(ConfigError, match=message):
            assemble(tower, decoder, output, **options)
    assert not (tmp_path / "x").exists()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (pickled / name).write_bytes((language / name).read_bytes())
    (pickled / "pytorch_model.bin").touch()
    with pytest.raises(ConfigError, match=r"no \*.safetensors.*convert"):
        assemble(vision, pickled, tmp_path / "x")


def test_the_flag_is_parsed_or_refused() -> None:
    assert parse_assemble(["vision=a/b", "language=c"]) == Assembly(vision="a/b", language="c")
    assert parse_assemble(
        ["language=c=d", "vision=v", "kind=llava_next", "image_grid_pinpoints=336x672,672x336"]
    ) == Assembly(vision="v", language="c=d", kind="llava_next", image_grid_pinpoints=[[336, 672], [672, 336]])
    for bad, message in (
        (["vision=a"], "needs vision=… and language=…"),
        (["vision=a", "language="], "NAME=VALUE"),
        (["vision=a", "language=b", "visoin=c"], "NAME=VALUE"),
        (["vision=a", "vision=b", "language=c"], "once"),
        (["vision=a", "language=b", "kind=blip"], "llava or llava_next"),
        (["vision=a", "language=b", "kind=llava_next", "image_grid_pinpoints=336,672x"], re.escape("336x672")),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_assemble(bad)
