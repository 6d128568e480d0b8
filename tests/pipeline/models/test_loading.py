import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.inspect.tables.token_text import Reference, pieces_of_reference
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.load_check import reach
from cal_pipeline.models.directory import model_directory
from cal_pipeline.models.loading import (
    check_architecture,
    load_processor,
    load_reference,
    weights_digest,
)
from cal_pipeline.runtime.worker import check_same_encoding, self_check
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from conftest import Family


@pytest.fixture
def copied(llava: Family, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llava.directory, tmp_path / "model"))


def spec_for(reference: Family, condition: str = "drop") -> MeasurementSpec:
    return MeasurementSpec(
        label=label_spec(reference.encoder), input=input_spec(reference.encoder),
        contrast=ContrastSpec(condition=condition),  # type: ignore[arg-type]
        dtype="float32", attn_implementation="sdpa", model_id=reference.name, revision=None, weights_digest="w",
        reference_saw_data="no",
    )  # fmt: skip


def test_digest_is_stable_and_changes_with_one_weight(copied: Path) -> None:
    before = weights_digest(copied)
    assert weights_digest(copied) == before
    weights = load_file(copied / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert weights_digest(copied) != before


def test_a_model_of_pickles_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"evil")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, which may run code"):
        weights_digest(copied)
    with pytest.raises(ConfigError, match="cannot load the model"):
        load_reference(copied, dtype="float32")


def test_a_file_that_is_no_safetensors_is_refused_by_name(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no safetensors file"):
        weights_digest(copied)


def test_a_model_that_is_not_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no such directory, and the hub did not give it"):
        model_directory("no/such-model")


@pytest.mark.parametrize("name", ["{here}/modell", "./modell", "../modell", "~/modell", "models/llava/7b"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str, tmp_path: Path) -> None:
    named = name.format(here=tmp_path)
    reference = Reference(model_id="tiny", revision=None, tokenizer_digest="", reported=None)
    for option, find in (
        ("--model_name_or_path", model_directory),
        ("tokenizer=", lambda path: pieces_of_reference(reference, path, "tokenizer=")),
    ):
        with pytest.raises(ConfigError) as raised:
            find(named)
        assert str(raised.value) == f"{option} {named}: no such directory"
        assert raised.value.__context__ is None


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'llama' model, which is not an image-text-to-text model"):
        check_architecture(tmp_path)


def test_a_vision_tower_alone_is_refused(tmp_path: Path) -> None:
    config = CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    CLIPVisionModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="not an image-text-to-text model"):
        check_architecture(tmp_path)


def test_missing_weights_are_refused_because_they_would_be_random(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    gone = next(name for name in sorted(weights) if "multi_modal_projector" in name)
    del weights[gone]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="they would be random"):
        load_reference(copied, dtype="float32")


def test_a_directory_without_a_processor_is_refused(copied: Path) -> None:
    for file in copied.glob("*processor*"):
        file.unlink()
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"model holds no processor, neither processor_config\.json nor preproc"):
        load_processor(copied)


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "paligemma", "idefics3"])
@pytest.mark.parametrize("condition", ["drop", "mask"])
def test_self_check_passes_on_every_family(family: Callable[[str], Family], name: str, condition: str) -> None:
    reference = family(name)
    self_check(reference.model, reference.encoder, spec_for(reference, condition))


def test_self_check_passes_in_bfloat16(llava: Family) -> None:
    model = load_reference(llava.directory, dtype="bfloat16")
    self_check(model, llava.encoder, spec_for(llava))


def test_self_check_pads_with_what_the_model_has(llava: Family, caplog: pytest.LogCaptureFixture) -> None:
    """Else rows would be measured one at a time on a CPU, and padding would cost the device on CUDA."""
    encoder = copy.copy(llava.encoder)
    encoder.pad_token_id = llava.model.get_input_embeddings().weight.shape[0]
    self_check(llava.model, encoder, spec_for(llava))
    assert encoder.pad_token_id == 0
    assert encoder.one_by_one is None
    assert not caplog.text


def test_self_check_names_the_model_and_contrast_mask_when_dropping_is_not_masking(copied: Path, llava: Family) -> None:
    model = load_reference(copied, dtype="float32")
    # A decoder that counts positions itself, as an absolute-position model without position_ids would.
    decoder = model.get_decoder()
    forward = decoder.forward

    def ignores_positions(*args: object, position_ids: object = None, **kwargs: object) -> object:
        return forward(*args, **kwargs)

    decoder.forward = ignores_positions
    with pytest.raises(ConfigError, match=r"llava: without-image logits differ by .* use --contrast mask"):
        self_check(model, llava.encoder, spec_for(llava))
    self_check(model, llava.encoder, spec_for(llava, "mask"))


def test_self_check_refuses_contrast_mask_where_masking_does_not_hide_the_image(copied: Path, llava: Family) -> None:
    model = load_reference(copied, dtype="float32")
    # A decoder that hands every token's content on past the attention mask.
    decoder = model.get_decoder()
    forward = decoder.forward

    def mixes(*args: object, inputs_embeds: torch.Tensor, **kwargs: object) -> object:
        so_far = inputs_embeds.cumsum(1) / torch.arange(1, inputs_embeds.shape[1] + 1)[:, None]
        return forward(*args, inputs_embeds=inputs_embeds + so_far, **kwargs)

    decoder.forward = mixes
    with pytest.raises(ConfigError, match=r"still differ by .* between two images; .* use another --contrast"):
        self_check(model, llava.encoder, spec_for(llava, "mask"))
    with pytest.raises(ConfigError, match=r"cannot be measured by either; use --contrast patch_mask"):
        self_check(model, llava.encoder, spec_for(llava))


def test_self_check_notices_a_head_that_is_not_what_it_seems(copied: Path, llava: Family) -> None:
    model = load_reference(copied, dtype="float32")
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, out: out + out.shape[-1])
    with pytest.raises(ConfigError, match="label-only LM head and full logits"):
        self_check(model, llava.encoder, spec_for(llava))


def test_self_check_notices_a_decoder_that_looks_at_padding_and_names_the_way_out(copied: Path, llava: Family) -> None:
    for attention, refused in (("sdpa", True), ("eager", False)):
        model = load_reference(copied, dtype="float32", attn_implementation=attention)
        for layer in innermost_decoder(model).layers:
            layer.self_attn.is_causal = False
        with pytest.raises(ConfigError, match="use --attn_implementation eager") if refused else nullcontext():
            self_check(model, llava.encoder, spec_for(llava))


def test_self_check_does_not_take_nan_for_agreement(copied: Path, llava: Family) -> None:
    model = load_reference(copied, dtype="float32")
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ConfigError, match="differs by nan"):
        self_check(model, llava.encoder, spec_for(llava))


def test_digest_covers_the_config_but_not_the_library_that_wrote_it(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    before = weights_digest(copied)
    (copied / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert weights_digest(copied) == before
    (copied / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -1}))
    assert weights_digest(copied) != before


def test_a_promised_gpu_that_is_not_there_is_refused(copied: Path) -> None:
    if torch.cuda.is_available():
        assert load_reference(copied, dtype="float32", device="cuda").device.type == "cuda"
        return
    with pytest.raises(ConfigError, match="torch sees none"):
        load_reference(copied, dtype="float32", device="cuda")


def test_another_attention_than_asked_for_is_refused(copied: Path) -> None:
    with pytest.raises(ConfigError, match="FlashAttention2"):
        load_reference(copied, dtype="float32", attn_implementation="flash_attention_2")


def test_a_worker_that_would_encode_otherwise_is_refused(llava: Family) -> None:
    shorter = Encoder(llava.encoder.processor, max_length=77)
    with pytest.raises(ConfigError, match="would make other inputs than the driver planned"):
        check_same_encoding(spec_for(llava), shorter)


def test_bfloat16_weights_stay_bfloat16_and_eval_mode(llava: Family) -> None:
    model = load_reference(llava.directory, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training


def test_config_without_weights_directory_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    with pytest.raises(ConfigError, match="cannot load the config"):
        check_architecture(tmp_path)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (("patch_size", "vision_feature_select_strategy"), "lacks patch_size and vision_feature_select_strategy"),
        (("vision_feature_select_strategy",), "lacks vision_feature_select_strategy"),
        (("image_mean",), "LlavaProcessor cannot process two small images"),
    ],
)
def test_an_incomplete_processor_is_named_with_what_it_lacks(copied: Path, lost: tuple[str, ...], message: str) -> None:
    path = copied / "processor_config.json"
    values = json.loads(path.read_text())
    for name in lost:
        values.pop(name, None)
        if name in values["image_processor"]:
            values["image_processor"][name] = [0.5, 0.5]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        Encoder(load_processor(copied))


@pytest.mark.full
def test_a_home_that_cannot_be_written_to_is_named_with_the_variable(copied: Path, tmp_path: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text("import transformers\n\nclass Own(transformers.LlavaConfig):\n    pass\n")
    (tmp_path / "file").write_text("")
    code = (
        "import sys; from pathlib import Path; from cal_pipeline.models.loading import load_config\n"
        "load_config(Path(sys.argv[1]), trust_remote_code=True)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(copied)], capture_output=True, text=True, check=False,
        env={**environment, "HF_HOME": str(tmp_path / "file" / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert "ConfigError: cannot load the config" in said
    assert f"Set HF_HOME (now {tmp_path / 'file' / 'home'}) to a directory that can be written to." in said


@pytest.mark.parametrize(
    ("config", "max_length", "tokens"),
    [
        ({}, 2048, 0),
        ({"sliding_window": 512}, 2048, 512),
        ({"sliding_window": 512}, 512, 0),  # No row outgrows it.
        ({"sliding_window": 4096}, 10_000, 0),
        ({"sliding_window": 8, "index_topk": 64, "hidden_size": 300}, 2048, 64),
        ({"sliding_window": 512, "_attn_implementation": "flash_attention_2"}, 2048, 0),
        ({"use_sliding_window": True, "sliding_window": None}, 2048, 0),
    ],
)
def test_the_long_row_of_the_self_check_outgrows_what_a_layer_sees(
    config: dict[str, object], max_length: int, tokens: int
) -> None:
    assert reach(SimpleNamespace(**{"_attn_implementation": "sdpa", **config}), max_length) == tokens


def test_the_self_check_measures_a_row_longer_than_the_window(family: Callable[[str], Family]) -> None:
    reference, lengths = family("gemma3"), []
    handle = innermost_decoder(reference.model).register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    self_check(reference.model, reference.encoder, spec_for(reference))
    handle.remove()
    assert reference.encoder.one_by_one is None
    assert 512 < max(lengths) < 560


def _short_of_memory(model: Any, full: Callable[[Any], bool]) -> list[torch.Size]:
    """Forwards fail where `full` says so of their ids; shapes of the ids of the others."""
    shapes: list[torch.Size] = []

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if full(kwargs["input_ids"]):
            raise torch.OutOfMemoryError("no room")
        shapes.append(kwargs["input_ids"].shape)

    model.register_forward_pre_hook(before, with_kwargs=True)
    return shapes


def test_a_long_row_that_memory_does_not_hold_is_left_out_of_the_self_check(
    family: Callable[[str], Family], caplog: pytest.LogCaptureFixture
) -> None:
    reference = family("gemma3")
    model = load_reference(reference.directory, dtype="float32")
    shapes = _short_of_memory(model, lambda ids: ids.numel() > 512)
    self_check(model, reference.encoder, spec_for(reference))
    assert "do not fit into memory; tried on short ones" in caplog.text
    assert max(rows for rows, _ in shapes) == 2


def test_a_model_that_memory_does_not_hold_in_float32_is_checked_as_it_is(llava: Family) -> None:
    model = load_reference(llava.directory, dtype="bfloat16")
    head = model.get_output_embeddings()
    shapes = _short_of_memory(model, lambda ids: head.weight.dtype == torch.float32 and len(ids) > 1)
    self_check(model, llava.encoder, spec_for(llava))
    assert max(rows for rows, _ in shapes) == 2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
