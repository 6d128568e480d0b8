"""Which tokens are labels, where the tokenizer's offsets, images or the source say otherwise than one would think."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import label_spec
from cal_pipeline.encoding.spans import overlapping_tokens
from cal_schemas.errors import NoSupervisedTokensError, SampleError, TooLongError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX
from conftest import Family
from examples_of import conversation
from tiny_models import FAMILIES, sample_image

IMAGE = sample_image(1, (60, 40))
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}"
    "{% endfor %}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def labels_of(encoder: Encoder, encoded: EncodedSample) -> list[str]:
    tokens = encoder.processor.tokenizer.convert_ids_to_tokens(encoded.labels[encoded.labels != IGNORE_INDEX].tolist())
    assert isinstance(tokens, list)
    return tokens


def trimming(processor: Any, post: Any) -> Any:
    """The processor, whose tokenizer's offsets leave out blanks."""
    twin = copy.copy(processor)
    twin.tokenizer = copy.deepcopy(processor.tokenizer)
    backend = twin.tokenizer.backend_tokenizer
    backend.post_processor = processors.Sequence([post, backend.post_processor])
    return twin


@pytest.mark.parametrize("answer", ["if x:\n    y", "  two blanks first", "a\n\n\nb  ", " \u00e9 \U0001f600 \n z"])
@pytest.mark.parametrize(
    "post", [processors.ByteLevel(trim_offsets=True), processors.ByteLevel(trim_offsets=True, use_regex=False)]
)
def test_blanks_of_an_answer_are_labels_whatever_the_offsets_leave_out(llava: Family, answer: str, post: Any) -> None:
    sample = conversation("Code?", answer, "More?", answer)
    processor = trimming(llava.encoder.processor, post)
    encoder = Encoder(processor)
    encoded = encoder(sample, [])
    assert torch.equal(encoded.labels, llava.encoder(sample, []).labels)
    supervised = (encoded.labels != IGNORE_INDEX).nonzero()[:, 0].tolist()
    holes = [at for at in range(supervised[0], supervised[-1]) if at not in supervised]
    assert encoder.processor.tokenizer.decode(encoded.sequence_inputs["input_ids"][holes]).strip() == (
        "USER: More? ASSISTANT:"
    )
    # The user's own processor stays as it was: it is saved with the model, and its digest is compared.
    assert label_spec(encoder).tokenizer_digest != label_spec(llava.encoder).tokenizer_digest
    assert encoder.processor is processor
    assert '"trim_offsets":true' in processor.tokenizer.backend_tokenizer.to_str()


def test_offsets_trimmed_by_a_post_processor_of_roberta_are_found_too(llava: Family) -> None:
    tokenizer = llava.encoder.processor.tokenizer
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("</s>", "<s>")]
    twin = copy.copy(llava.encoder.processor)
    twin.tokenizer = copy.deepcopy(tokenizer)
    twin.tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True)
    sample = conversation("Code?", "if x:\n    y")
    encoder = Encoder(twin)
    assert labels_of(encoder, encoder(sample, [])) == labels_of(llava.encoder, llava.encoder(sample, []))


def test_a_token_without_characters_counts_inside_a_span_only() -> None:
    starts = torch.tensor([0, 0, 3, 3, 5, 7, 7])
    stops = torch.tensor([0, 3, 3, 5, 5, 7, 9])
    assert overlapping_tokens(starts, stops, [(3, 7)]).tolist() == [False, False, False, True, True, False, False]


@pytest.fixture
def swallowing(llava: Family) -> Callable[..., Encoder]:
    """Encoders whose added tokens swallow the blanks on one side, as Phi-3's do on their right."""

    def make(template: str = TEMPLATE, **sides: bool) -> Encoder:
        processor = copy.copy(llava.encoder.processor)
        processor.tokenizer = copy.deepcopy(processor.tokenizer)
        tokens = [AddedToken(f"<|{name}|>", special=True, **sides) for name in ("user", "assistant", "end")]
        processor.tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        processor.chat_template = template
        return Encoder(processor)

    return make


@pytest.mark.parametrize("answer", ["No.", " No.", "\n \nNo."])
@pytest.mark.parametrize("side", ["rstrip", "lstrip"])
def test_a_header_s_token_is_no_label_though_it_swallows_the_answer_s_blanks(
    swallowing: Callable[..., Encoder], side: str, answer: str
) -> None:
    encoder = swallowing(**{side: True})
    labels = labels_of(encoder, encoder(conversation("Red?", answer, "Sure?", answer), []))
    assert "<|assistant|>" not in labels
    assert "<|user|>" not in labels
    assert labels.count("<|end|>") == 2
    assert "".join(labels).replace("\u0120", "").replace("\u010a", "") == "No.<|end|>" * 2


def test_the_next_header_s_token_is_no_label_though_it_swallows_the_blanks_an_answer_ends_with(
    swallowing: Callable[..., Encoder],
) -> None:
    encoder = swallowing(TEMPLATE.replace("<|end|>\n", ""), lstrip=True)
    labels = labels_of(encoder, encoder(conversation("Red?", "No.  ", "Sure?", "No."), []))
    assert "".join(labels).replace("\u0120", "").replace("\u010a", "") == "No.No."


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma"])
def test_an_image_in_an_answer_supervises_its_words_and_no_image_token(
    family: Callable[[str], Family], name: str
) -> None:
    encoder = family(name).encoder
    if name == "llava_next":  # Its template shows the first words of an answer only.
        encoder = Encoder(encoder.processor, template="vicuna_v1")
    for answer in ("Here <image> it is.", "Here it is. <image>"):
        encoded = encoder(conversation("Show it.", answer), [IMAGE])
        assert int(encoded.image_mask.sum()) > 3
        assert not bool((encoded.image_mask & (encoded.labels != IGNORE_INDEX)).any())
        words = "".join(labels_of(encoder, encoded)).replace("\u0120", "").replace("\u010a", "")
        assert "Here" in words
        assert "itis." in words


def test_an_image_in_a_caption_supervises_no_image_token(llava: Family) -> None:
    encoder = Encoder(llava.encoder.processor, template="plain")
    encoded = encoder(conversation("What?", "A <image> cat."), [IMAGE])
    assert not bool((encoded.image_mask & (encoded.labels != IGNORE_INDEX)).any())
    assert int(encoded.image_mask.sum()) == 9


def test_tail_cuts_an_image_by_no_token(llava: Family) -> None:
    sample = conversation("What?", "A cat.", "<image>\nAnd this?", "A dog.")
    image = llava.encoder(sample, [IMAGE]).image_mask.nonzero()[:, 0]
    for limit in range(int(image[0]), int(image[-1]) + 3):
        encoder = Encoder(llava.encoder.processor, max_length=limit, truncation="tail")
        if int(image[-1]) < limit:
            assert encoder(sample, [IMAGE]).num_tokens == limit
            continue
        with pytest.raises(TooLongError, match="would cut an image"):
            encoder(sample, [IMAGE])


def spoken(supervised: bool = True, **extra: Any) -> Sample:
    turns = (
        Turn(role="user", content="<image>\nWhat?"),
        Turn(role="assistant", content="A cat.", supervised=supervised, extra=extra),
    )
    return Sample(sample_id="s", images=(), messages=turns)


@pytest.mark.parametrize("template", ["auto", "vicuna_v1"])
def test_a_turn_that_is_not_to_be_learned_changes_labels_and_nothing_else(llava: Family, template: Any) -> None:
    encoder = Encoder(llava.encoder.processor, template=template)
    more = conversation("Where?", "There.").messages or ()
    both, second = (Sample(sample_id="s", images=(), messages=(*(spoken(kept).messages or ()), *more))
                    for kept in (True, False))  # fmt: skip
    all_of, one = (encoder(sample, [IMAGE]) for sample in (both, second))
    assert torch.equal(all_of.sequence_inputs["input_ids"], one.sequence_inputs["input_ids"])
    assert "".join(labels_of(encoder, one)).replace("\u0120", "") == "There.</s>"
    assert "".join(labels_of(encoder, all_of)).replace("\u0120", "") == "Acat.</s>There.</s>"


@pytest.mark.parametrize(("name", "template"), [("llava", "auto"), ("llava", "plain"), ("llava", "vicuna_v1"),
                                                ("paligemma", "auto")])  # fmt: skip
def test_a_row_of_which_nothing_is_to_be_learned_has_no_supervised_tokens(
    family: Callable[[str], Family], name: str, template: Any
) -> None:
    encoder = Encoder(family(name).encoder.processor, template=template)
    assert bool((encoder(spoken(), [IMAGE]).labels != IGNORE_INDEX).any())
    with pytest.raises(NoSupervisedTokensError, match="to be learned"):
        encoder(spoken(supervised=False), [IMAGE])
    encoder.check = lambda *sample: None  # type: ignore[assignment]
    with pytest.raises(NoSupervisedTokensError, match="no token of this encoding"):
        encoder(spoken(supervised=False), [IMAGE])


@pytest.mark.parametrize(("name", "template", "shown"), [
    ("llava", "plain", "--template plain"), ("llava", "vicuna_v1", "--template vicuna_v1"),
    ("paligemma", "auto", "--template auto of PaliGemmaProcessor"),
])  # fmt: skip
def test_templates_that_take_no_further_keys_refuse_them_by_name(
    family: Callable[[str], Family], name: str, template: Any, shown: str
) -> None:
    encoder = Encoder(family(name).encoder.processor, template=template)
    with pytest.raises(SampleError, match=rf"`reasoning_content`.*{shown}") as error:
        encoder(spoken(reasoning_content="I look."), [IMAGE])
    assert error.value.status == "encode_error"
    tools = Sample(sample_id="s", images=(), messages=spoken().messages, tools=[{"type": "function"}])
    with pytest.raises(SampleError, match="`tools`"):
        encoder(tools, [IMAGE])


ANSWERS = st.one_of(
    st.sampled_from(["A", "s", "USER:", "ASSISTANT:", "ASSISTANT: A", "</s>", "  blanks ", "What?", "\n\n", ""]),
    st.text(alphabet="As:T </>\n\u00e9", max_size=8),
)


@settings(max_examples=60, derandomize=True, database=None)
@given(st.lists(st.tuples(ANSWERS, ANSWERS), min_size=1, max_size=3))
def test_labels_are_the_tokens_of_the_answers_for_any_words(llava: Family, turns: list[tuple[str, str]]) -> None:
    encoder, sample = llava.encoder, conversation(*(text for pair in turns for text in pair))
    expected = "".join(f" {answer}</s>" for _, answer in turns if answer.strip())
    if not expected:
        with pytest.raises(NoSupervisedTokensError):
            encoder(sample, [])
        return
    encoded = encoder(sample, [])
    decoded = encoder.processor.tokenizer.decode(encoded.labels[encoded.labels != IGNORE_INDEX])
    assert decoded == expected
