import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken

from cal_pipeline import cli
from cal_pipeline.encoding import template_facts, templates
from cal_pipeline.encoding.templates import (
    chat_template,
    check_template,
    image_first,
    render_plain,
    render_vicuna_v1,
    special_tokens,
    warn_of_other_templates,
)
from cal_pipeline.models.loading import load_processor
from cal_schemas.errors import ConfigError, SampleError
from cal_schemas.sample import Sample, Turn
from cal_trainer import cli as train_cli
from conftest import Family
from examples_of import conversation
from template_only import rendered, supervised
from tiny_data import write_llava_json

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for p in m.content %}{{ '<img>' if p.type == 'image' else p.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def turns(sample: Sample) -> tuple[Turn, ...]:
    assert sample.messages is not None
    return sample.messages


def test_chat_supervises_the_words_and_the_end_token_of_every_turn_but_not_the_newline_behind() -> None:
    sample = conversation("<image>\nWhat?", "A cat.", "Where?", "On <|im_end|> it.")
    rendering = rendered(CHATML, turns(sample))
    assert rendering.text.startswith("<|im_start|>user\n<img>What?<|im_end|>\n<|im_start|>assistant\nA cat.")
    assert supervised(rendering) == ["A cat.<|im_end|>", "On <|im_end|> it.<|im_end|>"]


def test_words_that_also_occur_in_the_end_token_are_located_where_they_stand() -> None:
    assert supervised(rendered(CHATML, turns(conversation("?", "im_end")))) == ["im_end<|im_end|>"]


def test_a_template_that_trims_the_words_is_followed() -> None:
    source = CHATML.replace("p.text", "p.text | trim")
    assert supervised(rendered(source, turns(conversation("?", "  A cat. \n")))) == ["A cat.<|im_end|>"]


def test_an_image_inside_an_answer_keeps_the_words_on_both_sides() -> None:
    sample = conversation("?", "Here <image> it is.")
    assert supervised(rendered(CHATML, turns(sample))) == ["Here <img> it is.<|im_end|>"]


def test_only_the_newline_beside_a_mark_is_left_to_the_template() -> None:
    sample = conversation("Is <image> or <image>\nred?", "Yes.")
    assert "Is <img> or <img>red?" in rendered(CHATML, turns(sample)).text


def test_a_template_without_an_end_token_warns_once_and_supervises_the_words(caplog: pytest.LogCaptureFixture) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }} {% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template_facts._warned.clear()
    for _ in range(2):
        assert supervised(rendered(source, turns(conversation("?", "A cat.")))) == [" A cat."]
    assert caplog.text.count("no end token") == 1


def test_a_role_header_is_no_word_where_the_template_ignores_the_generation_prompt() -> None:
    source = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content[0].text }}</s>{% endfor %}"
    assert supervised(rendered(source, turns(conversation("?", "A cat.", "?", "A dog.")))) == [
        "A cat.</s>",
        "A dog.</s>",
    ]


def test_an_opening_answer_is_supervised_without_rendering_nothing() -> None:
    source = CHATML.replace("{% for m", "{{ messages[0].role[:0] }}{% for m", 1)  # fails on an empty conversation
    messages = (Turn(role="assistant", content="Hello."), *turns(conversation("?", "A cat.")))
    assert supervised(rendered(source, messages)) == ["Hello.<|im_end|>", "A cat.<|im_end|>"]


@pytest.mark.parametrize(
    "source",
    [
        CHATML.replace("p.text", "p.text | upper"),  # words cannot be found
        "{{ raise_it() }}",
        CHATML.replace("in messages", "in messages[-2:]"),  # earlier words are left out
        CHATML + "{{ messages[-1].content[0].text }}",  # an answer is written twice
    ],
)  # fmt: skip
def test_a_template_whose_words_cannot_be_located_makes_the_row_an_encode_error(source: str) -> None:
    with pytest.raises(SampleError) as error:
        rendered(source, turns(conversation("?", "A cat.", "?", "A dog.")))
    assert error.value.status == "encode_error"


def test_vicuna_by_hand() -> None:
    rendering = render_vicuna_v1(turns(conversation("<image>\nWhat?", "A cat.", "Sure?", "Yes.")), "<image>", "</s>")
    assert rendering.text == (
        templates.VICUNA_SYSTEM
        + " USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT: Yes.</s>"
    )  # fmt: skip
    assert supervised(rendering) == [" A cat.</s>", " Yes.</s>"]


def test_vicuna_takes_a_system_turn_and_skips_an_opening_answer() -> None:
    messages = (
        Turn(role="system", content="Be brief."),
        Turn(role="assistant", content="Hello"),
        *turns(conversation("?", "Yes.")),
    )
    assert render_vicuna_v1(messages, "<image>", "</s>").text == "Be brief. USER: ? ASSISTANT: Yes.</s>"


@pytest.mark.parametrize("roles", [["user", "user"], ["user", "system"]])
def test_vicuna_refuses_turns_that_do_not_alternate(roles: list[str]) -> None:
    with pytest.raises(SampleError, match="alternating"):
        render_vicuna_v1([Turn(role=role, content="x") for role in roles], "<image>", "</s>")


def test_plain_shows_the_image_and_supervises_caption_and_newline() -> None:
    rendering = render_plain(turns(conversation("<image>\nDescribe.", "A cat.")), "<image>")
    assert rendering.text == "<image>A cat.\n"
    assert supervised(rendering) == ["A cat.\n"]


def test_plain_refuses_more_than_one_question() -> None:
    with pytest.raises(SampleError, match="one question and one answer"):
        render_plain(turns(conversation("a", "b", "c", "d")), "<image>")


def test_what_is_not_to_be_learned_or_empty_has_no_span_in_the_built_in_templates() -> None:
    asked, unlearned = Turn(role="user", content="?"), Turn(role="assistant", content="No.", supervised=False)
    answered, empty = Turn(role="assistant", content="Yes."), Turn(role="assistant", content="")
    assert supervised(render_plain([asked, answered], "<i>")) == ["Yes.\n"]
    assert supervised(render_plain([asked, unlearned], "<i>")) == []
    conversation_ = [asked, unlearned, asked, answered, asked, empty]
    rendering = render_vicuna_v1(conversation_, "<i>", "</s>")
    assert supervised(rendering) == [" Yes.</s>"]
    assert rendering.text.endswith("ASSISTANT: Yes.</s>USER: ? ASSISTANT:")
    only = render_vicuna_v1([Turn(role="system", content="Be brief.")], "<i>", "</s>")
    assert (only.text, only.label_spans) == ("Be brief. ", ())


def test_special_tokens_are_those_declared_and_those_only_marked_in_the_tokenizer(llava: Family) -> None:
    tokenizer = load_processor(llava.directory).tokenizer
    before = set(special_tokens(tokenizer))
    assert {"<s>", "</s>", "<image>"} <= before
    tokenizer.add_tokens([AddedToken("<marked>", special=True), AddedToken("<word>", special=False)])
    assert set(special_tokens(tokenizer)) == before | {"<marked>"}


def test_a_processor_s_own_template_comes_before_its_tokenizer_s_and_of_several_the_default_counts(
    llava: Family,
) -> None:
    processor = load_processor(llava.directory)
    processor.tokenizer.chat_template = "of the tokenizer"
    processor.chat_template = {"tool_use": "with tools", "default": "without"}
    assert chat_template(processor) == "without"
    processor.chat_template = None
    assert chat_template(processor) == "of the tokenizer"
    processor.tokenizer.chat_template = None
    assert chat_template(processor) == ""


def test_templates_that_cannot_work_with_a_processor_are_refused_with_the_way_out(llava: Family) -> None:
    processor = load_processor(llava.directory)
    for template in ("auto", "plain", "vicuna_v1"):
        check_template(template, processor)  # type: ignore[arg-type]
    processor.chat_template = processor.tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"LlavaProcessor has no chat template: use --template plain or vicuna_v1"):
        check_template("auto", processor)
    check_template("vicuna_v1", processor)
    processor.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="ends answers with the tokenizer's eos token, and it has none"):
        check_template("vicuna_v1", processor)
    check_template("plain", processor)


def test_a_question_s_only_image_mark_moves_to_its_front() -> None:
    for content, moved in {
        "What <image> is it?": "<image>\nWhat  is it?", "What?\n<image>": "<image>\nWhat?", "<image>": "<image>",
        "No mark.": "No mark.", " <image> and <image>": " <image> and <image>",
    }.items():  # fmt: skip
        assert image_first(Turn(role="user", content=content)) == Turn(role="user", content=moved)


def put_template(directory: Path, name: str, template: str) -> None:
    file = directory / name
    if file.suffix == ".jinja":
        file.write_text(template + "\n")
    else:
        values = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(values | {"chat_template": template}))


@pytest.mark.parametrize(
    ("used", "other"),
    [
        ("processor_config.json", "chat_template.json"),
        ("processor_config.json", "chat_template.jinja"),
        ("chat_template.json", "chat_template.jinja"),
        ("chat_template.json", "tokenizer_config.json"),
        ("chat_template.jinja", "tokenizer_config.json"),
    ],
)
def test_of_two_files_with_other_templates_a_warning_names_the_one_that_is_used_and_the_one_that_is_not(
    llava: Family, tmp_path: Path, used: str, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(shutil.copytree(llava.directory, tmp_path / "model"))
    (directory / "chat_template.jinja").unlink()
    put_template(directory, used, CHATML)
    put_template(directory, other, CHATML)
    processor = load_processor(directory)
    caplog.clear()  # What transformers says.
    warn_of_other_templates(processor, directory)
    assert not caplog.messages, "they say the same"
    put_template(directory, other, CHATML.replace("im_end", "end"))
    processor = load_processor(directory)
    assert chat_template(processor).rstrip() == CHATML, "the other file won"
    caplog.clear()
    warn_of_other_templates(processor, directory)
    (said,) = caplog.messages
    assert f"the chat template is that of {used}, as transformers takes it; {other} has another" in said


def test_both_programs_warn_of_another_template_unless_the_template_is_a_flag(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(shutil.copytree(llava.directory, tmp_path / "model"))
    put_template(directory, "chat_template.json", (directory / "chat_template.jinja").read_text() + "{# other #}")
    data, images = write_llava_json(tmp_path, 2)
    common = ["--model_name_or_path", str(directory), "--output_dir", str(tmp_path / "out")]
    measuring = [*common, "--data_path", str(data), "--image_folder", str(images), "--dry_run"]
    # Refused, after the processor was loaded.
    training = [*common, "--source_path", str(data), "--image_folder", str(images), "--delta_source", "uniform",
                "--use_cpu", "true", "--trainable", "no_such_part"]  # fmt: skip
    for run, flags, code in ((cli.run, measuring, 0), (train_cli.run, training, 2)):
        for more, times in (([], 1), (["--template", "vicuna_v1"], 0)):
            caplog.clear()
            assert run([*flags, *more]) == code
            assert caplog.text.count("chat_template.jinja has another") == times
