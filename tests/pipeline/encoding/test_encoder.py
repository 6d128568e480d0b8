import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.utils import is_torchvision_available

from cal_pipeline.encoding.encoded import EncodedSample, token_aligned
from cal_pipeline.encoding.encoder import Encoder, pad_to_square
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.models.loading import load_processor
from cal_schemas.errors import ConfigError, NoSupervisedTokensError, SampleError, TooLongError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX
from conftest import Family
from examples_of import conversation
from families import processors
from tiny_models import FAMILIES, sample_image

IMAGE = sample_image(1, (60, 40))
END = {
    "llava": "</s>",
    "llava_next": "</s>",
    "gemma3": "<end_of_turn>",
    "paligemma": "<eos>",
    "idefics3": "<end_of_utterance>",
}
BOS = {"llava": "<s>", "llava_next": "<s>", "gemma3": "<bos>", "paligemma": "<bos>", "idefics3": "<|im_start|>"}


def decoded(encoder: Encoder, encoded: EncodedSample, chosen: torch.Tensor) -> str:
    return str(encoder.processor.tokenizer.decode(encoded.sequence_inputs["input_ids"][chosen]))


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_words_and_the_end_token_of_every_turn(family: Callable[[str], Family], name: str) -> None:
    encoder = family(name).encoder
    turns = ["<image>\nWhat is this?", "A red cat on the table."]
    expected = "A red cat on the table." + END[name]
    if name != "paligemma":  # takes one question and one answer
        turns += ["And where?", "Here, I think."]
        expected = f"{expected} Here, I think.{END[name]}"
    encoded = encoder(conversation(*turns), [IMAGE])
    labels = encoded.labels
    text = decoded(encoder, encoded, labels != IGNORE_INDEX).strip()
    assert text.replace(f"{END[name]} ", END[name]) == expected.replace(f"{END[name]} ", END[name])
    ids = encoded.sequence_inputs["input_ids"]
    assert torch.equal(labels[labels != IGNORE_INDEX], ids[labels != IGNORE_INDEX])


@pytest.mark.parametrize("name", FAMILIES)
def test_image_mask_covers_every_inserted_token_and_no_word(family: Callable[[str], Family], name: str) -> None:
    encoder = family(name).encoder
    encoded = encoder(conversation("<image>\nWhat is this?", "A red cat."), [IMAGE])
    ids = encoded.sequence_inputs["input_ids"]
    placeholder = family(name).model.config.image_token_id
    assert bool((ids == placeholder).any())
    assert bool(encoded.image_mask[ids == placeholder].all())
    rest = decoded(encoder, encoded, ~encoded.image_mask)
    for marker in ("<image>", "<row_", "<global-img>", "<fake_token", "<start_of_image>", "<end_of_image>"):
        assert marker not in rest
    assert "What is this?" in rest
    assert "A red cat." in rest


def test_row_and_column_markers_count_as_image(family: Callable[[str], Family]) -> None:
    encoder = family("idefics3").encoder
    encoded = encoder(conversation("<image>\nWhat?", "A cat."), [IMAGE])
    inserted = decoded(encoder, encoded, encoded.image_mask)
    assert "<row_1_col_1>" in inserted
    assert "<global-img>" in inserted


@pytest.mark.parametrize("name", FAMILIES)
def test_bos_is_there_exactly_once(family: Callable[[str], Family], name: str) -> None:
    encoder = family(name).encoder
    for images in ([IMAGE], []):
        encoded = encoder(conversation("<image>" * len(images) + "What?", "A cat."), images)
        text = decoded(encoder, encoded, ~encoded.image_mask)
        assert text.count(BOS[name]) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_two_images_and_text_only_rows_encode(family: Callable[[str], Family], name: str) -> None:
    encoder = family(name).encoder
    one = encoder(conversation("<image>\nWhat?", "A cat."), [IMAGE])
    two = encoder(conversation("<image>\n<image>\nWhat?", "A cat."), [IMAGE, sample_image(2, (60, 40))])
    none = encoder(conversation("What?", "A cat."), [])
    assert int(two.image_mask.sum()) >= 2 * int(one.image_mask.sum()) - 4
    assert not bool(none.image_mask.any())
    assert not none.image_inputs
    assert decoded(encoder, none, none.labels != IGNORE_INDEX) == decoded(encoder, one, one.labels != IGNORE_INDEX)


def test_batch_first_inputs_are_found_by_probing(family: Callable[[str], Family]) -> None:
    assert family("idefics3").encoder.batch_first_inputs == {"pixel_values", "pixel_attention_mask"}
    assert family("llava_next").encoder.batch_first_inputs == frozenset()


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_built_in_templates_work_with_any_processor(llava: Family, template: str) -> None:
    encoder = Encoder(llava.encoder.processor, template=template)  # type: ignore[arg-type]
    encoded = encoder(conversation("<image>\nWhat?", "A cat."), [IMAGE])
    end = {"plain": "\n", "vicuna_v1": "</s>"}[template]
    assert decoded(encoder, encoded, encoded.labels != IGNORE_INDEX).strip(" ") == f"A cat.{end}"
    assert int((encoded.sequence_inputs["input_ids"] == llava.encoder.processor.tokenizer.bos_token_id).sum()) == 1


def test_a_supervised_token_may_directly_follow_the_image(llava: Family) -> None:
    encoded = Encoder(llava.encoder.processor, template="plain")(conversation("<image>", "A cat."), [IMAGE])
    first = int((encoded.labels != IGNORE_INDEX).nonzero()[0])
    assert bool(encoded.image_mask[first - 1])


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        (("<image><image>?", "A cat."), 1, "2 <image> marks for 1 images"),
        (("What?", "A cat."), 1, "0 <image> marks for 1 images"),
    ],
)
def test_marks_must_equal_images(llava: Family, turns: tuple[str, ...], images: int, message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        llava.encoder(conversation(*turns), [IMAGE] * images)
    assert error.value.status == "encode_error"


@pytest.mark.parametrize("turns", [("What?",), ("What?", "   ")])
def test_a_conversation_without_assistant_words_has_no_supervised_tokens(llava: Family, turns: tuple[str, ...]) -> None:
    with pytest.raises(NoSupervisedTokensError, match="no assistant turn with words to be learned"):
        llava.encoder.check(conversation(*turns))


def test_an_answer_that_the_template_skips_leaves_no_token_to_learn(llava: Family) -> None:
    sample = conversation(messages=(Turn(role="assistant", content="Welcome."), Turn(role="user", content="What?")))
    with pytest.raises(NoSupervisedTokensError, match="no token of this encoding is supervised"):
        Encoder(llava.encoder.processor, template="vicuna_v1")(sample, [])


def test_a_processor_s_own_image_token_in_the_words_is_an_encode_error(family: Callable[[str], Family]) -> None:
    encoder = family("gemma3").encoder
    words = encoder.processor.image_token
    with pytest.raises(SampleError, match="Gemma3Processor") as error:
        encoder(conversation("<image>\nWhat?", f"A {words} cat."), [IMAGE])
    assert error.value.status == "encode_error"


@pytest.mark.parametrize("images", [0, 1])
def test_a_placeholder_written_into_the_words_is_an_encode_error(family: Callable[[str], Family], images: int) -> None:
    # The forward would count it as an image token and fail for the whole batch.
    with pytest.raises(SampleError, match="the text itself holds the model's image token '<image_soft_token>'"):
        family("gemma3").encoder(conversation("<image>" * images + "?", "A <image_soft_token> cat."), [IMAGE] * images)


def test_a_row_that_could_not_be_parsed_says_why(llava: Family) -> None:
    with pytest.raises(SampleError, match="malformed JSON line"):
        llava.encoder(conversation(messages=None, problem="malformed JSON line"), [])


def test_truncation_drop_refuses_and_tail_cuts_the_end(llava: Family) -> None:
    sample = conversation("<image>\nWhat?", "A cat on the table, I think, and a dog.")
    whole = llava.encoder(sample, [IMAGE])
    limit = whole.num_tokens - 3
    processor = llava.encoder.processor
    with pytest.raises(TooLongError, match=f"^{whole.num_tokens} .*{limit}; --truncation tail") as error:
        Encoder(processor, max_length=limit)(sample, [IMAGE])
    assert error.value.num_tokens == whole.num_tokens
    cut = Encoder(processor, max_length=limit, truncation="tail")(sample, [IMAGE])
    assert cut.truncated
    assert torch.equal(cut.labels, whole.labels[:limit])
    assert all(len(value) == limit for value in cut.sequence_inputs.values())


@pytest.mark.parametrize("keep", ["half the image", "the question"])
def test_tail_never_cuts_an_image_nor_all_labels(llava: Family, keep: str) -> None:
    sample = conversation("<image>\nWhat?", "A cat.")
    whole = llava.encoder(sample, [IMAGE])
    image = whole.image_mask.nonzero()[:, 0]
    first_label = int((whole.labels != IGNORE_INDEX).nonzero()[0])
    limit = int(image[len(image) // 2]) if keep == "half the image" else first_label
    with pytest.raises(TooLongError, match="image" if keep == "half the image" else "no supervised token"):
        Encoder(llava.encoder.processor, max_length=limit, truncation="tail")(sample, [IMAGE])


def test_pad_to_square_centres_the_image_on_the_mean_colour() -> None:
    image = Image.new("RGB", (4, 2), (9, 9, 9))
    padded = pad_to_square(image, [0.5, 0.25, 1.0])
    assert padded.size == (4, 4)
    assert [padded.getpixel((0, y)) for y in range(4)] == [(127, 63, 255), (9, 9, 9), (9, 9, 9), (127, 63, 255)]


def test_aspect_ratio_modes_give_other_pixels_and_the_same_tokens(llava: Family) -> None:
    sample = conversation("<image>\nWhat?", "A cat.")
    modes: tuple[Any, ...] = ("square", "pad")
    encoded = [Encoder(llava.encoder.processor, image_aspect_ratio=mode)(sample, [IMAGE]) for mode in modes]
    assert torch.equal(encoded[0].labels, encoded[1].labels)
    assert not torch.equal(encoded[0].image_inputs["pixel_values"], encoded[1].image_inputs["pixel_values"])


def test_square_is_refused_where_the_processor_does_not_crop(family: Callable[[str], Family]) -> None:
    with pytest.raises(ConfigError, match="use native or pad"):
        Encoder(family("idefics3").encoder.processor, image_aspect_ratio="square")
    processor = copy.copy(family("llava").encoder.processor)
    processor.image_processor = object()  # It knows of no such setting.
    with pytest.raises(ConfigError, match="object does not do"):
        Encoder(processor, image_aspect_ratio="square")


def test_square_crops_also_where_the_processor_would_pad(llava: Family) -> None:
    processor = load_processor(llava.directory)
    sample = conversation("<image>\nWhat?", "A cat.")
    cropped, padding = (Encoder(processor, image_aspect_ratio=mode) for mode in ("square", "native"))
    processor.image_processor.do_pad = True
    expected = llava.encoder(sample, [IMAGE]).image_inputs["pixel_values"]
    assert torch.equal(cropped(sample, [IMAGE]).image_inputs["pixel_values"], expected)
    assert not torch.equal(padding(sample, [IMAGE]).image_inputs["pixel_values"], expected)


def test_specs_differ_exactly_where_the_settings_do(llava: Family) -> None:
    processor = llava.encoder.processor
    by_vicuna = Encoder(processor, template="vicuna_v1", max_length=100)
    assert label_spec(llava.encoder) == label_spec(Encoder(processor, max_length=100))
    assert label_spec(llava.encoder).tokenizer_digest == label_spec(by_vicuna).tokenizer_digest
    assert label_spec(llava.encoder) != label_spec(by_vicuna)
    assert input_spec(llava.encoder) != input_spec(by_vicuna)
    backend = "torchvision" if is_torchvision_available() else "pil"
    assert input_spec(llava.encoder).image_processor_backend == backend


@pytest.mark.parametrize("known", [{"is_fast": False}, {}])
def test_a_slow_tokenizer_is_refused(known: dict[str, bool]) -> None:
    slow = type("Slow", (), known)()
    processor = SimpleNamespace(image_token="<image>", image_processor=None, tokenizer=slow)
    with pytest.raises(ConfigError, match="Slow gives no character offsets"):
        Encoder(processor)


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_what_only_chat_templates_take_refuses_the_row_elsewhere(
    family: Callable[[str], Family], template: Any
) -> None:
    llava, thought = family("llava").encoder, Turn(role="assistant", content="A.", extra={"reasoning_content": "I."})
    question = Turn(role="user", content="What?")
    with_keys = [
        (conversation(messages=(question, thought)), "`reasoning_content`"),
        (conversation("What?", "A.", tools=[{}]), "`tools`"),
    ]
    for sample, named in with_keys:
        with pytest.raises(SampleError, match=f"only chat templates take {named}, .* --template {template}$"):
            Encoder(llava.processor, template=template).check(sample)
        with pytest.raises(SampleError, match=f"{named}, .* --template auto of PaliGemmaProcessor$"):
            family("paligemma").encoder.check(sample)
        llava.check(sample)  # Its template may take them: rendering tells.


def test_more_images_than_tokens_are_too_many_before_one_is_opened(llava: Family) -> None:
    encoder = Encoder(llava.encoder.processor, max_length=2)
    encoder.check(conversation("<image><image>?", "A."), 2)
    with pytest.raises(TooLongError, match="3 images are more than the 2 tokens"):
        encoder.check(conversation("<image><image><image>?", "A."), 3)


def test_a_template_that_reads_no_date_is_the_same_on_every_day(llava: Family) -> None:
    assert llava.encoder.dated("2020-02-29") is llava.encoder
    assert llava.encoder.dated("2020-02-29").date is None


def test_paligemma_takes_one_question_and_one_answer(family: Callable[[str], Family]) -> None:
    with pytest.raises(SampleError, match="one question and one answer"):
        family("paligemma").encoder(conversation("<image>?", "A.", "?", "B."), [IMAGE])


def test_a_system_turn_that_the_template_refuses_is_an_encode_error(family: Callable[[str], Family]) -> None:
    sample = conversation(
        messages=(
            Turn(role="system", content="x"),
            Turn(role="user", content="?"),
            Turn(role="assistant", content="A."),
        )
    )
    with pytest.raises(SampleError, match="the chat template fails"):
        family("gemma3").encoder(sample, [])


@pytest.mark.parametrize(("truncation", "reason"), [("drop", "tokens .--max_length. can spell"), ("tail", "to be cut")])
def test_a_text_of_ten_megabytes_is_too_long_without_being_encoded(
    llava: Family, monkeypatch: pytest.MonkeyPatch, truncation: Any, reason: str
) -> None:
    encoder = Encoder(llava.encoder.processor, max_length=64, truncation=truncation)
    monkeypatch.setattr(encoder._facts, "process", lambda *text, **options: pytest.fail("it was encoded"))
    turns = (Turn(role="user", content="Read."), Turn(role="assistant", content="word " * 2_000_000))
    with pytest.raises(TooLongError, match=reason):
        encoder(Sample(sample_id="x", images=(), messages=turns), [])


class _WithExperts(transformers.LlavaProcessor):
    """Also says which expert each token goes to, and something of the images that has as many entries as one text."""

    pieces = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(*args, **kwargs)
        ids = torch.as_tensor(output["input_ids"])
        output["expert_ids"] = (ids == self.image_token_id).long()
        if "pixel_values" in output:
            type(self).pieces = self.pieces or ids.shape[1]
            output["piece_sizes"] = torch.ones(1, self.pieces, dtype=torch.long)
        return output


def test_inputs_of_tokens_are_found_by_their_shape_not_by_their_name(llava: Family) -> None:
    own = llava.encoder.processor
    processor = _WithExperts(
        own.image_processor,
        own.tokenizer,
        **{
            name: getattr(own, name)
            for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
        },
        chat_template=own.chat_template,
    )
    encoder = Encoder(processor)
    question = conversation("<image>\nWhat?", "A cat on a mat.")
    shown = encoder(question, [sample_image(1)])
    assert torch.equal(shown.sequence_inputs["expert_ids"], shown.image_mask.long())
    assert set(shown.image_inputs) == {"pixel_values", "piece_sizes"}
    # As many entries as this row has tokens, and of the images all the same.
    _WithExperts.pieces = shown.num_tokens
    again = encoder(question, [sample_image(1)])
    assert set(again.sequence_inputs) == {"input_ids", "attention_mask", "expert_ids"}
    words = encoder(conversation("What?", "Yes."), [])
    assert words.image_inputs == {}, "a row without an image has no second pass"
    cut = Encoder(processor, max_length=shown.num_tokens - 2, truncation="tail")(question, [sample_image(1)])
    assert len(cut.sequence_inputs["expert_ids"]) == cut.num_tokens


def test_what_cannot_encode_is_refused_when_the_encoder_is_made(llava: Family) -> None:
    processor = load_processor(llava.directory)
    with pytest.raises(ConfigError, match="max_length must be positive, got 0"):
        Encoder(processor, max_length=0)
    assert Encoder(processor, max_length=1).max_length == 1
    for name in ("template", "image_aspect_ratio", "truncation"):  # A slip would encode as some other choice does.
        with pytest.raises(ConfigError, match=f"{name} must be one of .*, got 'Drop'"):
            Encoder(processor, **{name: "Drop"})
    with pytest.raises(ConfigError, match="is no image-text processor"):
        Encoder(processor.tokenizer)
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="LlavaProcessor has no chat template"):
        Encoder(processor)
    processor.image_token = None
    with pytest.raises(ConfigError, match=r"LlavaProcessor is no image-text processor \(no image token\)"):
        Encoder(processor, template="plain")


def test_an_image_that_stands_before_all_text_takes_its_mark_and_newline_along(tmp_path: Path) -> None:
    processors.BUILDERS["blip_2"](tmp_path)
    encoder = Encoder(processors.BY_NAME["blip_2"].load(tmp_path)[1].processor, template="vicuna_v1")
    bos = encoder.processor.tokenizer.bos_token_id
    encodings = [
        encoder(conversation(question, "A cat.", "And?", "A dog."), [IMAGE])
        for question in ("<image>\nWhat?", "<image> What?", "What? <image>")
    ]
    for encoding in encodings:
        prefix = int(encoding.image_mask.sum())
        assert torch.equal(encoding.image_mask, torch.arange(encoding.num_tokens) < prefix)
        assert decoded(encoder, encoding, encoding.labels != IGNORE_INDEX) == " A cat.<eos> A dog.<eos>"
        text = decoded(encoder, encoding, ~encoding.image_mask)
        assert "USER: What? ASSISTANT: A cat.<eos>USER: And? ASSISTANT:" in text
        assert int((encoding.sequence_inputs["input_ids"][prefix:] == bos).sum()) == 1
    late = encoder(conversation("What?", "A cat.", "<image>\nAnd?", "A dog."), [IMAGE])
    assert torch.equal(late.sequence_inputs["input_ids"], encodings[0].sequence_inputs["input_ids"])
    assert torch.equal(late.labels, encodings[0].labels)


def test_inputs_of_tokens_have_their_shape_and_whole_numbers() -> None:
    ids = torch.zeros(1, 3, dtype=torch.long)
    names = token_aligned({"input_ids": ids, "areas": ids / 2, "sizes": ids[:, :2], "names": ["a"]})
    assert names == {"input_ids"}


class Rewriting:
    """Mixed into a processor: it writes something before the text, with a report of its replacements or without."""

    before = ""
    reports = True

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """As the processor's own, of the longer text."""
        written = [words if self.before and words.startswith(self.before) else self.before + words for words in text]
        output = super().__call__(images=images, text=written, **kwargs)  # type: ignore[misc]
        if not self.reports:
            output.pop("text_replacement_offsets", None)
        return output


def rewriting(llava: Family, **how: Any) -> Any:
    processor = load_processor(llava.directory)
    processor.__class__ = type("RewritingProcessor", (Rewriting, type(processor)), how)
    return processor


def test_a_processor_that_rewrites_the_text_around_its_images_is_refused_by_name(llava: Family) -> None:
    assert Encoder(rewriting(llava)).batch_first_inputs == llava.encoder.batch_first_inputs
    with pytest.raises(ConfigError, match="RewritingProcessor rewrites the text around its images, so labels cannot"):
        Encoder(rewriting(llava, before="Look: "))


@pytest.mark.parametrize("template", ["auto", "vicuna_v1"])
def test_a_processor_that_writes_the_bos_itself_gets_no_second_one(llava: Family, template: Any) -> None:
    processor = rewriting(llava, before=BOS["llava"], reports=False)
    asked = conversation("<image>\nWhat?", "A cat.")
    encoded = Encoder(processor, template=template)(asked, [IMAGE])
    expected = Encoder(load_processor(llava.directory), template=template)(asked, [IMAGE])
    assert torch.equal(encoded.sequence_inputs["input_ids"], expected.sequence_inputs["input_ids"])
    assert torch.equal(encoded.labels, expected.labels)
    assert torch.equal(encoded.image_mask, expected.image_mask)


def test_a_bos_behind_a_blank_is_the_template_s_and_no_second_one_is_written(llava: Family) -> None:
    processor = load_processor(llava.directory)
    source = str(processor.chat_template)
    processor.chat_template = processor.tokenizer.chat_template = "{{ '\n<s>' }}" + source.replace("<s>", "")
    encoded = Encoder(processor)(conversation("What?", "A cat."), [])
    ids = encoded.sequence_inputs["input_ids"]
    assert int((ids == processor.tokenizer.bos_token_id).sum()) == 1
    assert int(ids[0]) != processor.tokenizer.bos_token_id


def test_a_tokenizer_without_a_bos_encodes(llava: Family) -> None:
    processor = load_processor(llava.directory)
    processor.tokenizer.bos_token = None
    encoder = Encoder(processor, template="plain")
    encoded = encoder(conversation("<image>\nDescribe.", "A cat."), [IMAGE])
    assert decoded(encoder, encoded, encoded.labels != IGNORE_INDEX).strip() == "A cat."
