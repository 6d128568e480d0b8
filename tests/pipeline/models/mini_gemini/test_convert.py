"""`cal-convert-mgm`: every tensor finds its place or is named; what it writes loads; nothing half-done is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from cal_pipeline.models.mini_gemini import tensor_names as keys
from cal_pipeline.models.mini_gemini.cli import main
from cal_pipeline.models.mini_gemini.convert import convert
from cal_schemas.errors import ConfigError
from mini_gemini_data import GOLDENS, KINDS, build_mini_gemini, save_parts, source, stripped_source


def argv(kind: str, output: Path, *flags: str, **changed: Path) -> list[str]:
    given = {**source(kind), **changed}
    named = [part for name in ("vision", "aux_vision", "tokenizer") for part in (f"--{name}", str(given[name]))]
    return [str(given["source"]), *named, "--output", str(output), *flags]


def parameters(directory: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForImageTextToText.from_pretrained(directory)
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_towers_come_from_their_own_checkpoints_when_the_source_has_none(kind: str, tmp_path: Path) -> None:
    whole = build_mini_gemini(tmp_path / "whole", kind)
    stripped = stripped_source(kind, tmp_path / "stripped")
    assert main(argv(kind, tmp_path / "out", source=stripped)) == 0
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    first, second = parameters(whole), parameters(tmp_path / "out")
    assert first.keys() == second.keys()
    # The golden checkpoint holds its own copies of the towers.
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_the_source_holds_wins_over_the_towers(tmp_path: Path) -> None:
    changed = tmp_path / "source"
    shutil.copytree(GOLDENS / "llama_small", changed)
    tensors = load_file(changed / "model.safetensors")
    for name in tensors:
        if name.endswith("vision_tower_aux.vision_stem.0.bias"):
            tensors[name] += 1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    convert(**{**source("llama"), "source": changed, "output": tmp_path / "out"})
    before, after = parameters(build_mini_gemini(tmp_path / "plain")), parameters(tmp_path / "out")
    name = "model.aux_vision_tower.embeddings.patch_embeddings.bias"
    torch.testing.assert_close(after[name], before[name] + 1)


def test_dry_run_prints_the_mapping_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv("llama", tmp_path / "out", "--dry_run")) == 0
    printed = capsys.readouterr().out
    assert "model.vlm_uni_aux_projector.1.weight -> model.patch_info_mining.key.1.weight [32, 80]" in printed
    assert "model.mm_projector.2.bias -> model.multi_modal_projector.linear_2.bias [64]" in printed
    lines = printed.splitlines()
    assert sum(" -> " in line for line in lines) == 187
    # The golden source holds its own copies of both towers: theirs are named too.
    assert sum(line.startswith("not used: ") and "the source has its own" in line for line in lines) == len(lines) - 188
    assert lines[-1].startswith(f"187 tensors, {len(lines) - 188} of the sources not used; every parameter has its")
    assert list(tmp_path.iterdir()) == []


def edited(folder: Path, change: str) -> Path:
    target = stripped_source("llama", folder)
    files = [load_file(file) for file in sorted(target.glob("*.safetensors"))]
    tensors = {name: value for file in files for name, value in file.items()}
    if change == "missing":
        del tensors["model.vlm_uni_val_projector.0.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    elif change == "unknown":
        tensors["model.vlm_uni_gate.weight"] = torch.zeros(1)
    elif change == "extra layer":
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(112, 64)
    elif change == "shape":
        tensors["model.mm_projector.0.weight"] = torch.zeros(64, 48)
    save_parts(tensors, target)
    if change == "duplicate":
        save_file({"model.norm.weight": torch.zeros(64)}, target / "more.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "no tensor for 2 parameters: model.language_model.layers.1.mlp.up_proj.weight, "
                    "model.patch_info_mining.value.0.weight"),
        ("unknown", "1 tensors that no part of Mini-Gemini is made of: model.vlm_uni_gate.weight"),
        ("extra layer", "1 tensors the config has no place for: model.language_model.layers.2.mlp.up_proj.weight"),
        ("shape", "model.multi_modal_projector.linear_1.weight is (64, 48) in the checkpoint, (64, 32) by the configs"),
        ("duplicate", "model.norm.weight is in both"),
    ],
)  # fmt: skip
def test_every_key_is_accounted_for(
    change: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv("llama", tmp_path / "out", source=edited(tmp_path / "source", change))) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_folders_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = source("llama")
    wrong = [
        (argv("llama", tmp_path / "out", vision=given["aux_vision"]), "openclip holds"),
        (argv("llama", tmp_path / "out", aux_vision=given["vision"]), "clip holds"),
        (argv("llama", tmp_path / "out", source=tmp_path / "nowhere"), "cannot read"),
        (argv("llama", tmp_path / "out", tokenizer=tmp_path), "neither tokenizer.json nor tokenizer.model"),
        (argv("llama", tmp_path / "out", source=given["vision"]), "'clip_vision_model' model"),
        ([str(given["source"]), "--output", str(tmp_path / "out")], "give --vision and --aux_vision"),
        (argv("llama", tmp_path), "exists already"),
    ]
    for flags, message in wrong:
        assert main(flags) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def as_pickle(folder: Path) -> Path:
    """The folder's weights as one file of torch's own, and no safetensors."""
    tensors = load_file(folder / "model.safetensors")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_a_pickled_source_and_a_config_that_makes_no_model_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled, wrong = tmp_path / "pickled", tmp_path / "wrong"
    for folder in (pickled, wrong):
        shutil.copytree(GOLDENS / "llama_small", folder)
    (pickled / "golden.safetensors").unlink(missing_ok=True)
    assert main(argv("llama", tmp_path / "out", source=as_pickle(pickled))) == 2
    assert "has pytorch_model.bin and no *.safetensors" in capsys.readouterr().err
    described = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**described, "hidden_size": "wide"}))
    assert main(argv("llama", tmp_path / "out", source=wrong)) == 2
    assert "make no Mini-Gemini: Validation error for field 'hidden_size'" in capsys.readouterr().err


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self.path,))  # type: ignore[return-value]


def test_a_tower_that_would_run_code_is_refused(tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    tower.mkdir()
    torch.save({"visual.trunk.stem.0.weight": Evil(tmp_path / "ran")}, tower / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match="no plain file of tensors"):
        convert(**{**source("llama"), "aux_vision": tower, "output": tmp_path / "out"})
    assert not (tmp_path / "ran").exists()


def test_a_whole_clip_and_a_whole_openclip_serve_as_towers() -> None:
    clip = ["vision_model.post_layernorm.bias", "text_model.final_layer_norm.bias", "logit_scale",
            "visual_projection.weight", "vision_model.embeddings.position_ids"]  # fmt: skip
    renamed, useless = keys.rename(clip, keys.CLIP, "clip")
    assert renamed == {"vision_model.post_layernorm.bias": "model.vision_tower.post_layernorm.bias"}
    assert len(useless) == 4
    open_clip = [
        "visual.trunk.stages.2.blocks.26.mlp.fc1.bias", "visual.head.mlp.fc1.weight", "visual.trunk.head.norm.bias",
                 "transformer.resblocks.0.ln_1.bias", "positional_embedding", "token_embedding.weight"]  # fmt: skip
    renamed, useless = keys.rename(open_clip, keys.OPEN_CLIP, "openclip")
    assert list(renamed.values()) == ["model.aux_vision_tower.encoder.stages.2.layers.26.pwconv1.bias"]
    assert len(useless) == 5


def test_a_language_model_becomes_what_pretraining_starts_from(tmp_path: Path) -> None:
    language = tmp_path / "language"
    config = LlamaConfig(**{
        "vocab_size": 601, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    })  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(language)
    given = {**source("llama"), "source": language}
    with pytest.raises(ConfigError, match="without --untrained"):
        convert(**given, output=tmp_path / "out")
    convert(**given, output=tmp_path / "out", untrained=True, seed=1)
    text = load_file(language / "model.safetensors")
    as_pickle(language)  # As Vicuna is published.
    convert(**given, output=tmp_path / "again", untrained=True, seed=1)
    convert(**given, output=tmp_path / "other", untrained=True, seed=2)
    first, again, other = (parameters(tmp_path / name) for name in ("out", "again", "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert {name.split(".")[1] for name in differing} == {"multi_modal_projector", "patch_info_mining"}
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["aux_vision_config"]["image_size"] == 768
    assert torch.equal(first["model.language_model.norm.weight"], text["model.norm.weight"])


def test_hd_keeps_the_weights_and_changes_the_images(tmp_path: Path) -> None:
    small = build_mini_gemini(tmp_path / "small")
    assert main([str(small), "--hd", "--output", str(tmp_path / "hd")]) == 0
    before, after = parameters(small), parameters(tmp_path / "hd")
    assert all(torch.equal(before[name], after[name]) for name in before)
    described = json.loads((tmp_path / "hd" / "config.json").read_text())
    assert (described["image_grid"], described["image_global"], described["image_seq_length"]) == (2, True, 80)
    assert described["aux_vision_config"]["image_size"] == 256
    with pytest.raises(ConfigError, match="grid of 2 already"):
        convert(tmp_path / "hd", output=tmp_path / "more", hd=True)
    with pytest.raises(ConfigError, match="is a mini_gemini already"):
        convert(small, output=tmp_path / "more")
