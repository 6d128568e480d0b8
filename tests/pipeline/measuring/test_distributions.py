"""Extra columns against a plain float64 computation from full logits, and the memory they take."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cal_pipeline.encoding.collate import Batch, collate
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring import distributions
from cal_pipeline.measuring.contrast import contrast_logits, innermost_decoder
from cal_pipeline.measuring.distributions import contrast_columns
from cal_pipeline.measuring.replaced_forward import replaced_forward
from cal_schemas.spec import CONDITIONS, IGNORE_INDEX, ContrastSpec
from cal_schemas.token_columns import EXTRA_COLUMNS
from conftest import Family
from examples_of import conversation
from families.table import ALL
from tiny_models import FAMILIES, build_qwen2_5_vl_model, sample_image

PARAMETERS = {"patch_mask": {"patch_mask_ratio": 0.7}, "gaussian_blur": {"blur_sigma": 3.0}}
ALL_KINDS = tuple(EXTRA_COLUMNS)
GIVEN = [
    (conversation("<image>\nWhat is this?", "A red cat on the table."), [sample_image(1, (60, 40))]),
    (conversation("<image>\n<image>\nAnd these?", "A dog."), [sample_image(2, (50, 50)), sample_image(3, (80, 30))]),
    (conversation("How are you?", "Fine, thank you."), []),
]


def batch_of(reference: Family, contrast: ContrastSpec | None = None) -> Batch:
    encoded = [encode_with_contrast(reference.encoder, contrast or ContrastSpec(), *pair, "k") for pair in GIVEN]
    return collate(
        encoded, pad_token_id=reference.encoder.pad_token_id, batch_first=reference.encoder.batch_first_inputs
    )


@torch.no_grad()
def full_logits(model: Any, inputs: Any, labels: Tensor) -> Tensor:
    """All logits of a plain forward, [V, B, T] like `label_logits`."""
    logits = model(**inputs, use_cache=False).logits.float().permute(2, 0, 1)
    return torch.cat([torch.full_like(logits[..., :1], torch.nan), logits[..., :-1]], -1)


def by_hand(logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Every extra column in float64, [B, T], from both passes' full logits [V, B, T], by the equations in method.md."""
    label_ids = labels.clamp(min=0)[None]
    logprobs = [of_pass.double().log_softmax(0) for of_pass in logits]
    p, q = (of_pass.exp() for of_pass in logprobs)
    m = (p + q) / 2
    given = {
        "logits": [of_pass.double().gather(0, label_ids)[0] for of_pass in logits],
        "logprobs": [of_pass.gather(0, label_ids)[0] for of_pass in logprobs],
        "kl": [
            (p * (p / q).log()).sum(0),
            (q * (q / p).log()).sum(0),
            (p * (p / m).log() + q * (q / m).log()).sum(0) / 2,
        ],
        "entropy": [-(of_pass.exp() * of_pass).sum(0) for of_pass in logprobs],
    }
    columns = {
        name: value for kind, values in given.items() for name, value in zip(EXTRA_COLUMNS[kind], values, strict=True)
    }
    # Between: which of two equal logits is larger is a matter of rounding.
    for name, of_pass in zip(EXTRA_COLUMNS["rank"], logits, strict=True):
        label = of_pass.double().gather(0, label_ids)
        for end, by in (("least", 1e-4), ("most", -1e-4)):
            columns[f"{name} at {end}"] = 1.0 + (of_pass > label + by).sum(0)
    return columns


@pytest.fixture(params=[64 * 2**20, 2048], ids=["one chunk", "many chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "CHUNK_BYTES", request.param)


def check(
    model: Any, inputs: dict[str, Tensor], labels: Tensor, image_mask: Tensor, contrast: Any = None, other: Any = None
) -> dict[str, Tensor]:
    """Compares every column with the plain computation; returns this."""
    given = (model, inputs, labels, image_mask, contrast, other)
    columns = contrast_columns(*given, extra=ALL_KINDS)
    assert list(columns) == [name for names in EXTRA_COLUMNS.values() for name in names]
    plain = contrast_logits(*given)
    full = contrast_logits(*given, full_logits)
    wanted = by_hand(full, labels)
    defined = ~plain[1].isnan()
    for name, values in columns.items():
        assert values.dtype == torch.float32
        assert torch.equal(values.isnan(), ~defined), name
        of_defined = values[defined].double()
        if name.startswith("rank"):
            assert bool((wanted[f"{name} at least"][defined] <= of_defined).all()), name
            assert bool((wanted[f"{name} at most"][defined] >= of_defined).all()), name
        else:
            tolerance = 2e-5 if name.startswith("log") else 2e-6
            torch.testing.assert_close(of_defined, wanted[name][defined], atol=tolerance, rtol=2e-6, msg=name)
    for name, logits in zip(EXTRA_COLUMNS["logits"], plain, strict=True):
        torch.testing.assert_close(columns[name], logits, equal_nan=True)
    return wanted


def check_batch(model: Any, batch: Batch, contrast: ContrastSpec | None = None) -> dict[str, Tensor]:
    other = batch.contrast_inputs if contrast and contrast.perturbs else None
    return check(model, batch.inputs, batch.labels, batch.image_mask, contrast, other)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(
    "name", [name if name in ("llava", "gemma3") else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]
)
def test_they_are_those_of_full_logits(family: Callable[[str], Family], name: str) -> None:
    reference = family(name)
    wanted = check_batch(reference.model, batch_of(reference))
    assert float(wanted["js_with_without"].nan_to_num().max()) > 1e-3


@pytest.mark.usefixtures("chunk")
def test_a_model_that_cannot_be_called_without_an_image(tmp_path: Path) -> None:
    case = ALL["blip_2"].make(tmp_path)
    check_batch(case.model, case.batch(case.samples[:2]))


@pytest.mark.usefixtures("chunk")
def test_at_model_level_with_rotary_sections() -> None:
    model, tiny = build_qwen2_5_vl_model()
    check(model, tiny.inputs, tiny.labels, tiny.image_mask)


@pytest.mark.usefixtures("chunk")
def test_a_soft_cap_on_a_tied_head_is_respected(
    family: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = family("gemma3")
    model, batch = reference.model, batch_of(reference)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = check_batch(model, batch)
    monkeypatch.setattr(model.config.get_text_config(), "final_logit_softcapping", 3.0)
    with torch.no_grad():
        if float(model(**batch.inputs).logits.max()) > 3:  # It has no cap of its own: one around its forward serves.
            change_outside(model, monkeypatch, lambda logits: torch.tanh(logits / 3.0) * 3.0)
    after = check_batch(model, batch)
    change = (after["entropy_with_image"] - before["entropy_with_image"]).nan_to_num().abs()
    assert float(change.max()) > 0.1


def change_outside(model: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Makes the model do this to its logits at last."""
    forward = type(model).forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(type(model), "forward", changed)


@pytest.mark.usefixtures("chunk")
def test_a_scale_and_a_bias_are_respected(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    change_outside(llava.model, monkeypatch, lambda logits: logits * 0.25)
    head = llava.model.get_output_embeddings()
    head.bias = nn.Parameter(torch.linspace(-3, 3, head.out_features))
    try:
        check_batch(llava.model, batch_of(llava))
        assert "forward" not in head.__dict__
    finally:
        head.bias = None


@pytest.mark.usefixtures("chunk")
def test_columns_that_pad_the_vocabulary_have_no_part_where_the_model_cuts_them_off(
    llava: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(llava)
    kept = int(batch.labels.max()) + 1
    assert kept < llava.model.get_output_embeddings().out_features
    before = by_hand([full_logits(llava.model, batch.inputs, batch.labels)] * 2, batch.labels)
    change_outside(llava.model, monkeypatch, lambda logits: logits[..., :kept])
    after = check_batch(llava.model, batch)
    change = (after["logprobs_with_image"] - before["logprobs_with_image"])[batch.labels != IGNORE_INDEX]
    assert float(change.nanmean()) > 1e-3


@pytest.mark.parametrize("given_up", [-torch.inf, torch.finfo(torch.float32).min])
def test_tokens_that_a_model_gives_up_have_no_part(llava: Family, given_up: float) -> None:
    batch, head = batch_of(llava), llava.model.get_output_embeddings()
    given = (llava.model, batch.inputs, batch.labels, batch.image_mask)
    unused = int(batch.labels.max()) + 1
    passes = contrast_logits(*given, read=full_logits)
    wanted = by_hand([torch.cat([of_pass[:unused], of_pass[unused + 1 :]]) for of_pass in passes], batch.labels)
    head.bias = nn.Parameter(torch.zeros(head.out_features).index_fill(0, torch.tensor([unused]), given_up))
    try:
        columns = contrast_columns(*given, extra=("kl", "entropy"))
    finally:
        head.bias = None
    defined = ~columns["logits_without_image"].isnan()
    for name in (*EXTRA_COLUMNS["kl"], *EXTRA_COLUMNS["entropy"]):
        torch.testing.assert_close(columns[name][defined].double(), wanted[name][defined], atol=2e-6, rtol=2e-6)


def test_the_divergences_of_two_distributions_by_hand() -> None:
    probs = torch.tensor([[[0.75, 0.25, 0.0]], [[0.5, 0.5, 0.0]]])
    tokens = distributions._Tokens(logprobs=probs.log(), probs=probs, label_ids=torch.tensor([1]))
    log = math.log
    expected = [
        0.75 * log(1.5) + 0.25 * log(0.5),
        0.5 * log(2 / 3) + 0.5 * log(2),
        (0.75 * log(1.2) + 0.25 * log(2 / 3) + 0.5 * log(0.8) + 0.5 * log(4 / 3)) / 2,
    ]
    divergences = distributions._OF_BOTH["kl"](tokens)
    torch.testing.assert_close(divergences, torch.tensor(expected)[:, None], atol=1e-7, rtol=0)
    assert distributions._OF_BOTH["rank"](tokens).tolist() == [[2.0], [1.0]]  # Of equal ones none is before another.


def test_a_token_that_one_pass_alone_gives_up_makes_one_direction_infinite() -> None:
    probs = torch.tensor([[[0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5]]])
    tokens = distributions._Tokens(logprobs=probs.log(), probs=probs, label_ids=torch.tensor([0]))
    log = math.log
    js = (log(0.5 / 0.375) + 0.5 * log(0.25 / 0.375) + 0.5 * log(2)) / 2
    expected = torch.tensor([log(2), math.inf, js])[:, None]
    torch.testing.assert_close(distributions._OF_BOTH["kl"](tokens), expected, atol=1e-6, rtol=0)


def test_a_word_of_no_number_leaves_no_rank(llava: Family) -> None:
    batch, head = batch_of(llava), llava.model.get_output_embeddings()
    unused = int(batch.labels.max()) + 1
    head.bias = nn.Parameter(torch.zeros(head.out_features).index_fill(0, torch.tensor([unused]), torch.nan))
    given = (llava.model, batch.inputs, batch.labels, batch.image_mask)
    try:
        columns = contrast_columns(*given, extra=("rank",))
    finally:
        head.bias = None
    assert bool(columns["logits_with_image"].isfinite().any())
    assert all(bool(columns[name].isnan().all()) for name in EXTRA_COLUMNS["rank"])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_both_passes_under_every_contrast(llava: Family, condition: Any) -> None:
    contrast = ContrastSpec(condition=condition, **PARAMETERS.get(condition, {}))
    batch = batch_of(llava, contrast)
    wanted = check_batch(llava.model, batch, contrast)
    if condition == "mask":
        masked = {**batch.inputs, "attention_mask": batch.inputs["attention_mask"] * ~batch.image_mask}
        full = [full_logits(llava.model, inputs, batch.labels) for inputs in (batch.inputs, masked)]
        again = by_hand(full, batch.labels)
        shown = ~wanted["kl_with_without"].isnan() & batch.image_mask.any(-1, keepdim=True)
        torch.testing.assert_close(again["kl_with_without"][shown], wanted["kl_with_without"][shown], atol=1e-5, rtol=0)


def test_the_decoder_runs_no_third_time(llava: Family) -> None:
    batch, lengths = batch_of(llava), []
    handle = innermost_decoder(llava.model).register_forward_hook(
        lambda module, args, output: lengths.append(output.last_hidden_state.shape[1])
    )
    try:
        contrast_columns(llava.model, batch.inputs, batch.labels, batch.image_mask, extra=ALL_KINDS)
    finally:
        handle.remove()
    # And one token alone, which shows what the model does behind its head.
    text = batch.inputs["attention_mask"].bool() & ~batch.image_mask
    assert [length for length in lengths if length > 1] == [text.shape[1], int(text.sum(-1).max())]


def test_of_a_text_both_passes_are_one(llava: Family) -> None:
    encoded = [encode_with_contrast(llava.encoder, ContrastSpec(), *GIVEN[2], "k")]
    batch = collate(encoded, pad_token_id=llava.encoder.pad_token_id, batch_first=llava.encoder.batch_first_inputs)
    columns = contrast_columns(llava.model, batch.inputs, batch.labels, batch.image_mask, extra=ALL_KINDS)
    for kind in ("logits", "logprobs", "entropy", "rank"):
        one, other = (columns[name] for name in EXTRA_COLUMNS[kind])
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True)
    for name in EXTRA_COLUMNS["kl"]:
        assert columns[name][batch.labels != IGNORE_INDEX].nan_to_num().abs().max() == 0, name


def test_in_half_precision_all_behind_the_hidden_rows_is_exact(llava: Family) -> None:
    model = copy.deepcopy(llava.model).bfloat16()
    batch = batch_of(llava).to("cpu", torch.bfloat16)
    given, head = (model, batch.inputs, batch.labels, batch.image_mask), model.get_output_embeddings()

    def exact(of: Any, inputs: Any, labels: Tensor) -> Tensor:
        with replaced_forward(head, lambda hidden: hidden.double() @ head.weight.double().T):
            return full_logits(of, inputs, labels)

    wanted, columns = (
        by_hand(contrast_logits(*given, read=exact), batch.labels),
        contrast_columns(*given, extra=ALL_KINDS),
    )
    rounded = by_hand(contrast_logits(*given, read=full_logits), batch.labels)
    defined = ~columns["logits_without_image"].isnan()
    for name in (*EXTRA_COLUMNS["logprobs"], *EXTRA_COLUMNS["kl"], *EXTRA_COLUMNS["entropy"]):
        error = (columns[name] - wanted[name])[defined].abs().max()
        assert float(error) < 1e-5
        assert float((rounded[name] - wanted[name])[defined].abs().max()) > 10 * error, name


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors that are alive, at most; counted by storage, so nothing depends on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, Tensor) and (address := item.untyped_storage()._cdata) not in self._known:
                size = item.untyped_storage().nbytes()
                self._known.add(address)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(item.untyped_storage(), self._freed, address, size)
        return result

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


@pytest.mark.parametrize("cap", [None, 30.0])
def test_memory_is_bounded_by_the_chunk_and_not_by_rows_times_vocabulary(
    cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, hidden, vocabulary, limit = 256, 16, 20_000, 2**20
    head = nn.Linear(hidden, vocabulary, bias=False)

    class Model(nn.Module):
        def get_output_embeddings(self) -> nn.Linear:
            return head

        def forward(self, use_cache: bool, **inputs: Tensor) -> Any:
            logits = head(torch.zeros(1, 1, hidden))
            return SimpleNamespace(logits=logits if cap is None else torch.tanh(logits / cap) * cap)

    monkeypatch.setattr(distributions, "CHUNK_BYTES", limit)
    hidden_rows, label_ids = torch.randn(2 * rows, hidden), torch.randint(vocabulary, (rows,))
    numbers, wanted = torch.arange(2 * rows).view(2, rows), tuple(distributions._OF_BOTH)
    with torch.no_grad():
        full = head(hidden_rows) if cap is None else torch.tanh(head(hidden_rows) / cap) * cap
        with LiveBytes() as live:
            one = {name: torch.ones(1, 1, dtype=torch.long) for name in ("input_ids", "attention_mask")}
            finish = distributions.after_head(Model(), one, label_ids[:1])
            values = distributions._values(Model(), hidden_rows, numbers, label_ids, finish, wanted)
    some = slice(0, rows, 16)
    expected = by_hand(full.view(2, rows, 1, vocabulary)[:, some].permute(0, 3, 1, 2), label_ids[some, None])
    names = [name for kind in wanted for name in EXTRA_COLUMNS[kind]]
    for name, of_name in zip(names, values, strict=True):
        if name in expected:
            torch.testing.assert_close(of_name[some].double(), expected[name][:, 0], atol=1e-5, rtol=1e-5)
    assert full.nbytes > 30 * limit
    assert limit < live.peak < 6 * limit
