"""What a chat template gets, and what becomes of a row whose keys or words it does not take."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cal_pipeline.encoding import chat
from cal_pipeline.encoding.chat import ChatTemplate
from cal_schemas.errors import SampleError
from cal_schemas.sample import Turn
from examples_of import conversation
from template_only import TemplateOnly, rendered, supervised
from trl_templates import SOURCES, TEMPLATES

CALL = {"type": "function", "id": "c1", "function": {"name": "zoom", "arguments": {"at": "left", "n": 1}}}
AT = {"type": "object", "properties": {"at": {"type": "string", "description": "Where."}}, "required": ["at"]}
TOOL = {"type": "function", "function": {"name": "zoom", "description": "Zooms.", "parameters": AT}}
ASKED = Turn(role="user", content="What?")


def answered(content: str = "A cat.", **extra: Any) -> Turn:
    return Turn(role="assistant", content=content, extra=extra)


def called(content: str = "") -> list[Turn]:
    result = Turn(role="tool", content='{"seen": "a \\"cat\\""}', extra={"tool_call_id": "c1", "name": "zoom"})
    return [ASKED, answered(content, tool_calls=[CALL]), result, answered()]


def labels(name: str, messages: list[Turn], tools: list[Any] | None = None) -> list[str]:
    return supervised(TEMPLATES[name].render(messages, tools))


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize(("name", "thoughts"), [
    ("qwen3", "<think>\nI look.\n</think>\n\n"), ("glm4moe", "\n<think>I look.</think>\n"),
    ("gptoss", "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("gemma4_v5", "<|channel>thought\nI look.\n<channel|>"), ("nemotron_3_ultra", "<think>\nI look.</think>"),
])  # fmt: skip
def test_thoughts_of_the_last_answer_are_rendered_and_learned(name: str, thoughts: str, key: str) -> None:
    (label,) = labels(name, [ASKED, answered(**{key: "I look."})])
    assert label.startswith(thoughts + "A cat.")


@pytest.mark.parametrize("name", ["llama3", "qwen2_5_vl", "llava_next", "gemma3", "phi3"])
def test_keys_that_a_template_does_not_take_refuse_the_row_by_name(name: str) -> None:
    for key, value in (("reasoning_content", "I look."), ("tool_calls", [CALL]), ("audience", "all")):
        with pytest.raises(SampleError, match=f"`{key}`") as error:
            labels(name, [ASKED, answered(**{key: value})])
        assert error.value.status == "encode_error"
    with pytest.raises(SampleError, match="`tools`"):
        labels(name, [ASKED, answered()], [TOOL])


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_a_name_that_a_template_does_not_take_refuses_the_row_unless_a_tool_has_it(role: str) -> None:
    messages = [Turn(role="system", content="S"), ASKED, answered()]
    named = [Turn(role=turn.role, content=turn.content, extra={"name": "Ann"} if turn.role == role else {})
             for turn in messages]  # fmt: skip
    with pytest.raises(SampleError, match="does not take `name`"):
        labels("qwen2_5", named)


def test_thoughts_that_a_template_drops_in_earlier_turns_refuse_the_row() -> None:
    with pytest.raises(SampleError, match="`reasoning_content` of turn 1"):
        labels("qwen3", [ASKED, answered(reasoning_content="I look."), ASKED, answered()])


def test_thoughts_within_an_earlier_answer_may_be_left_out_and_the_words_before_them_may_not() -> None:
    thought = "<think>\nI look.\n</think>\n\nA cat."
    assert labels("qwen3", [ASKED, answered(thought), ASKED, answered("B")])[0] == "A cat.<|im_end|>"
    with pytest.raises(SampleError, match="leaves out words of turn 1"):
        labels("qwen3", [ASKED, answered("Hm. " + thought), ASKED, answered("B")])


def test_keys_without_a_value_say_nothing() -> None:
    bare = labels("llama3", [ASKED, answered()], [])
    assert labels("llama3", [ASKED, answered(tool_calls=[], reasoning_content="")], None) == bare


@pytest.mark.parametrize(("name", "call"), [
    ("qwen3", '<tool_call>\n{"name": "zoom", "arguments": {"at": "left", "n": 1}}\n</tool_call><|im_end|>'),
    ("llama3_1", '{"name": "zoom", "parameters": {"at": "left", "n": 1}}<|eot_id|>'),
    ("gptoss", ' to=functions.zoom<|channel|>commentary json<|message|>{"at": "left", "n": 1}<|call|>'),
    ("lfm2_2_5", "<|tool_call_start|>[zoom(at='left', n=1)]<|tool_call_end|><|im_end|>"),
    ("glm4moe", "\n<think></think>\n<tool_call>zoom\n<arg_key>at</arg_key>\n<arg_value>left</arg_value>\n"
                "<arg_key>n</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
    ("qwen3_8", "<think>\n\n</think>\n\n<tool_call>\n<function=zoom>\n<parameter=at>\nleft\n</parameter>\n"
                "<parameter=n>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>"),
])  # fmt: skip
def test_a_turn_that_only_calls_a_tool_is_learned_to_its_end(name: str, call: str) -> None:
    label_texts = labels(name, called(), [TOOL])
    assert label_texts[0] == call
    assert "A cat." in label_texts[1]
    assert "seen" not in "".join(label_texts)


CALLING = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.role == 'tool' %}"
    "[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]{% elif m.tool_calls %}"
    "[TOOL_CALLS] [{{ m.tool_calls[0].function | tojson }}]</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)


def test_a_call_is_learned_from_its_beginning_where_no_header_stands_before_an_answer() -> None:
    call = '[TOOL_CALLS] [{"name": "zoom", "arguments": {"at": "left", "n": 1}}]</s>'
    assert supervised(rendered(CALLING, [*called(), *called()])) == [call, "A cat.</s>"] * 2
    headed = CALLING.replace("[TOOL_CALLS] [", "ASSISTANT: [").replace(
        "%} {{ m.content }}</s>", "%}ASSISTANT: {{ m.content }}</s>"
    )
    assert supervised(rendered(headed, called())) == [call.removeprefix("[TOOL_CALLS] "), "A cat.</s>"]


def test_a_call_whose_beginning_cannot_be_told_refuses_the_row() -> None:
    counting = "{{ messages | length }}" + CALLING
    with pytest.raises(SampleError, match="tool calls of turn 1 begin"):
        rendered(counting, called())
    assert supervised(rendered(counting, [ASKED, answered()])) == ["A cat.</s>"]


def test_a_last_call_ends_as_an_answer_does_and_where_that_cannot_be_told_the_row_is_refused() -> None:
    calling = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}"
    )
    asking = "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}"
    call, messages = '{"name": "zoom", "arguments": {"at": "left", "n": 1}}', [ASKED, answered("", tool_calls=[CALL])]
    assert supervised(rendered(calling + "<|end|>" + asking, messages)) == [f"{call}<|end|>"]
    endless = "{{ messages | length }}" + calling + asking.replace("</s>", "")
    with pytest.raises(SampleError, match="tool calls of turn 1 end"):
        rendered(endless, [*messages, *called()[2:]])


@pytest.mark.parametrize("name", ["qwen3", "lfm2_2_5", "nemotron_3_nano", "qwen3_6"])
def test_words_before_a_call_are_learned_with_it(name: str) -> None:
    first, second = labels(name, called("I zoom."))
    assert first.index("I zoom.") < first.index("zoom", first.index("I zoom.") + 7) < first.index("<|im_end|>")
    assert second.endswith("A cat.<|im_end|>")


def test_words_that_a_template_leaves_out_beside_a_call_refuse_the_row() -> None:
    with pytest.raises(SampleError, match="leaves out words of turn 1"):
        labels("llama3_1", called("I zoom."))


def test_a_call_whose_arguments_quote_the_end_token_refuses_the_row() -> None:
    call = {**CALL, "function": {"name": "zoom", "arguments": {"at": "<|im_end|>"}}}
    with pytest.raises(SampleError, match="tool calls of turn 1 hold"):
        labels("qwen3", [ASKED, answered("", tool_calls=[call]), Turn(role="tool", content="x"), answered()])


def test_tools_are_described_to_the_model_and_nothing_of_them_is_learned() -> None:
    rendering = TEMPLATES["qwen2_5"].render([ASKED, answered()], [TOOL])
    assert '"description": "Zooms."' in rendering.text
    assert supervised(rendering) == ["A cat.<|im_end|>"]


def test_a_template_that_takes_text_gets_it_with_the_image_token_where_the_mark_was() -> None:
    messages = conversation("Is <image>\nred?", "Yes.").messages or ()
    assert "user<|end_header_id|>\n\nIs <image>\nred?<|eot_id|>" in TEMPLATES["llama3"].render(messages).text


def test_a_template_that_shows_no_image_among_parts_gets_text() -> None:
    messages = conversation("<image>\nRed?", "Yes.").messages or ()
    assert "<|user|>\n<image>\nRed?<|assistant|>" in TEMPLATES["glm4moe"].render(messages).text


def test_an_image_that_a_template_leaves_out_refuses_the_row() -> None:
    with pytest.raises(SampleError, match="leaves out the image of turn 1"):
        labels("qwen3_vl", [ASKED, answered("Here <image> it is.")])


def test_words_of_a_system_turn_that_a_template_rewrites_are_followed() -> None:
    messages = [Turn(role="system", content="Reasoning effort: high for cats"), ASKED, answered()]
    rendering = TEMPLATES["muse_glimmer"].render(messages)
    assert "Reasoning strength: high for cats" in rendering.text
    assert supervised(rendering) == [" to=user<|message|>A cat.<|eot|>"]


ESCAPING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if m.role == 'assistant' else m.content | e }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Looks into what people say, so that an answer is cut at all its tags."""
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("answer", ["<think>", "</think>", "<think> </think>", "<b>", "<|assistant|>", "<|end|>",
                                    "<|assistant|>\nA", "A<|end|>", "<|end|>A <|assistant|>", "<p> <q>"])  # fmt: skip
def test_tags_of_an_answer_are_learned_whatever_they_read_like(answer: str) -> None:
    messages = [Turn(role="user", content="Is <b> & <i> 'bold'?"), answered(answer), ASKED, answered()]
    assert supervised(rendered(ESCAPING, messages)) == [f"{answer}<|end|>", "A cat.<|end|>"]
    assert supervised(rendered(MISTRAL, messages)) == [f"{answer}</s>", "A cat.</s>"]
    in_parts = "{% for m in messages %}", "{% for m in messages %}{% for part in m.content %}"
    for source, end in ((ESCAPING, "<|end|>"), (MISTRAL, "</s>")):
        taking = source.replace(*in_parts).replace("m.content", "part.text").replace("in part.text", "in m.content")
        taking = taking.replace("{% endfor %}", "{% endfor %}{% endfor %}", 1)
        assert supervised(rendered(taking, messages)) == [f"{answer}{end}", f"A cat.{end}"]


def test_a_tag_that_a_template_drops_behind_an_answer_leaves_its_end_where_it_is() -> None:
    source = ESCAPING.replace("{{ m.content if", "{{ m.content | replace('<b>', '') if")
    assert supervised(rendered(source, [ASKED, answered("A cat<b>"), ASKED, answered()])) == [
        "A cat<|end|>", "A cat.<|end|>",
    ]  # fmt: skip


def test_a_template_that_drops_an_answer_of_tags_alone_refuses_the_row() -> None:
    with pytest.raises(SampleError, match="changes words"):
        labels("qwen3", [ASKED, answered("</think>"), ASKED, answered()])


@pytest.mark.parametrize("question", ["<think>", "Explain <think>", "Explain <b> & <think>", "<think></think> <think>"])
def test_a_think_tag_that_a_question_ends_with_is_no_answer(question: str) -> None:
    for source in (MISTRAL, MISTRAL.replace("{{ m.content }} [/", "{{ m.content | e }} [/")):
        messages = [Turn(role="user", content=question), answered()] * 2
        assert supervised(rendered(source, messages)) == ["A cat.</s>"] * 2


def test_an_answer_does_not_reach_to_the_end_of_a_later_one_that_says_nothing() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}</s>"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    empty = [Turn(role="user", content=""), answered("")]
    assert supervised(rendered(source, [ASKED, answered(), *empty])) == ["A cat."]


def test_an_answer_does_not_begin_at_the_numbered_header_of_one_before_it_that_says_nothing() -> None:
    source = (
        "{% for m in messages %}{{ m.role }} {{ loop.index }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant {{ messages | length + 1 }}: {% endif %}"
    )
    for between in ([], [Turn(role="user", content="")]):
        assert supervised(rendered(source, [ASKED, answered(""), *between, answered()])) == ["A cat.</s>"]


def test_a_template_that_would_print_typed_parts_gets_text() -> None:
    for how in ("m.content | e", "m.content | tojson", "m.content | string | upper | lower"):
        source = f"{{% for m in messages %}}<|{{{{ m.role }}}}|>{{{{ {how} }}}}<|end|>{{% endfor %}}"
        rendering = rendered(source, [Turn(role="user", content="q"), answered("cat")])
        assert "text" not in rendering.text
        assert len(rendering.label_spans) == 1


def test_a_template_that_prints_the_parts_of_some_turns_refuses_the_row() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.index > 4 %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}<|end|>"
        "{% endfor %}"
    )
    assert len(rendered(source, [ASKED, answered()] * 2).label_spans) == 2
    with pytest.raises(SampleError, match="typed parts of a turn as they are"):
        rendered(source, [ASKED, answered()] * 3)


def test_a_template_that_needs_a_system_turn_is_looked_at_with_one() -> None:
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('No system') }}{% endif %}" + chatml
    rendering = rendered(source, [Turn(role="system", content="S"), *[ASKED, answered()] * 2])
    assert supervised(rendering) == ["A cat.<|im_end|>"] * 2
    assert rendering.text.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>")
    with pytest.raises(SampleError, match="No system"):
        rendered(source, [ASKED, answered()])


def test_a_template_that_shows_no_plain_question_and_answer_refuses_every_row_with_its_reason() -> None:
    source = "{% if messages | length < 5 %}{{ raise_exception('Too few') }}{% endif %}" + MISTRAL
    with pytest.raises(SampleError, match="Too few"):
        rendered(source, [ASKED, answered()] * 3)


def test_an_end_that_is_no_special_token_comes_before_one_that_ends_the_conversation() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}"
    )
    for specials in (["</s>"], ["</s>", "<|user|>", "<|assistant|>"]):
        assert supervised(rendered(source, [ASKED, answered()] * 2, specials)) == ["A cat.<|end|>"] * 2


def test_a_template_without_special_tokens_ends_a_turn_as_all_its_answers_end() -> None:
    source = "{% for m in messages %}### {{ m.role }}: {{ m.content }}<stop>\n{% endfor %}"
    assert supervised(rendered(source, [ASKED, answered(), ASKED, answered("B")], ["</s>"])) == [
        "A cat.<stop>", "B<stop>",
    ]  # fmt: skip


def test_what_looks_like_a_special_token_ends_a_turn_though_the_tokenizer_has_none_such() -> None:
    messages = [ASKED, answered(), ASKED, answered("B")]
    for name in ("phi3", "gptoss", "qwen3", "llama3"):
        assert rendered(SOURCES[name], messages, ["<s>", "</s>"]).label_spans == (
            TEMPLATES[name].render(messages).label_spans
        )


def test_an_end_token_behind_the_last_answer_alone_leaves_the_others_without() -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|endoftext|>"
    specials = ["<|user|>", "<|assistant|>", "<|endoftext|>"]
    assert supervised(rendered(source, [ASKED, answered(), ASKED, answered("B")], specials)) == [
        "A cat.", "B<|endoftext|>",
    ]  # fmt: skip
    assert supervised(rendered(source, [ASKED, answered(), ASKED], specials)) == ["A cat."]


def test_an_end_that_only_some_conversations_have_is_learned_of_their_last_answer() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{{ '<|eot|>' if messages[0].role == 'system' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert supervised(rendered(source, [Turn(role="system", content="S"), ASKED, answered()])) == ["A cat.<|eot|>"]


def test_answers_that_end_as_questions_do_are_learned_to_their_end_where_the_last_has_none() -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if not (loop.last and m.role == 'assistant') %}<|end|>{% endif %}{% endfor %}"
    )
    assert supervised(rendered(source, [ASKED, answered(), ASKED, answered("B")], ["<|user|>", "<|end|>"])) == [
        "A cat.<|end|>", "B",
    ]  # fmt: skip


@pytest.mark.parametrize("block", ["{%- generation %}", "{% generation %}\n", "{%- generation -%}\n  "])
def test_generation_blocks_leave_out_what_they_do_not_hold(block: str) -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last %}" + block + "{{ m.content }}</s>"
        "{%- endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert supervised(rendered(source, [ASKED, answered(), ASKED, answered("B")])) == ["B</s>"]


def test_generation_blocks_side_by_side_are_one_span_and_what_stands_between_others_is_none() -> None:
    block, shut = "{% generation %}", "{% endgeneration %}"
    for between, expected in (("", ["A cat.!</s>"]), ("|", ["A cat.", "!</s>"])):
        source = (
            "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}" + block + "{{ m.content }}" + shut
            + between + block + "!" + shut + block + "</s>" + shut + "{% else %}{{ m.content }}</s>{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
        )  # fmt: skip
        assert supervised(rendered(source, [ASKED, answered()] * 2)) == expected * 2


def test_a_marker_s_own_words_in_the_conversation_are_words() -> None:
    for words in ("qwslot0e", "qwslot", "qwslotwopen qwslot1e"):
        messages = conversation(words, f"{words} A", words, f"B {words}").messages or ()
        assert labels("qwen2_5", list(messages)) == [f"{words} A<|im_end|>", f"B {words}<|im_end|>"]
    call = {**CALL, "function": {"name": "zoom", "arguments": {"at": "qwslot0e"}}}
    assert '"arguments": {"at": "qwslot0e"}' in labels("qwen2_5", [ASKED, answered("", tool_calls=[call])])[0]


def test_rows_of_one_layout_are_rendered_once_each() -> None:
    processor = TemplateOnly(SOURCES["qwen2_5_vl"])
    template = ChatTemplate(processor, processor.specials)
    template.render(conversation("<image>\nWhat?", "A cat.", "Why?", "So.").messages or ())
    before = processor.num_renderings
    for number in range(10):
        template.render(conversation(f"<image>\n{number}?", f"{number} cats.", "And?", "No more").messages or ())
    assert processor.num_renderings == before + 10


def test_what_is_remembered_of_layouts_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_KEPT_CHARACTERS", 10_000)
    processor = TemplateOnly(ESCAPING)
    template = ChatTemplate(processor, processor.specials)
    sizes = []
    for number in range(100):
        template.render([Turn(role="user", content=f"{number} <b> {'word ' * 200}"), answered()])
        sizes.append(sum(map(len, template._skeletons)))
    assert 8_000 < max(sizes[:50]) < 12_000
    assert 8_000 < max(sizes[50:]) < 12_000


def test_threads_share_a_template() -> None:
    processor = TemplateOnly(SOURCES["qwen3_training"])
    template = ChatTemplate(processor, processor.specials)
    rows = [conversation(*["What?", f"{number} cats."] * (1 + number % 5)).messages or () for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: supervised(template.render(row)), rows))
    assert answers == [
        [f"<think>\n\n</think>\n\n{number} cats.<|im_end|>"] * (1 + number % 5) for number in range(200)
    ]  # fmt: skip


def test_a_question_without_a_word_or_of_a_dropped_tag_alone_hides_no_answer() -> None:
    for question in ("& !", "<b>", "& <b> !", "<b> &"):
        assert supervised(rendered(ESCAPING, [Turn(role="user", content=question), answered()])) == ["A cat.<|end|>"]
    dropping = ESCAPING.replace("m.content | e", "m.content | replace('<b>', '')")
    rendering = rendered(dropping, [Turn(role="user", content="<b>"), answered()])
    assert supervised(rendering) == ["A cat.<|end|>"]
    assert rendering.text == "<|user|><|end|><|assistant|>A cat.<|end|>"


@pytest.mark.parametrize(("source", "question"), [(ESCAPING, "Is <b> & <i> bold?"), (MISTRAL, "{} small cats or {}?")])
def test_words_of_any_number_are_one_layout(source: str, question: str) -> None:
    processor = TemplateOnly(source)
    template = ChatTemplate(processor, processor.specials)
    layouts = [conversation(question, "{} cats and {} dogs."), conversation(question, "{} <think> {}.", question, "{}")]

    def render(words: str) -> None:
        for layout in layouts:
            turns = [Turn(role=turn.role, content=turn.content.replace("{}", words)) for turn in layout.messages or ()]
            template.render(turns)

    render("no")
    before = processor.num_renderings
    for number in range(5):
        render(f"{number} big red")
    assert processor.num_renderings == before + 10


def test_thoughts_that_are_no_text_are_shown_as_they_are_or_refuse_the_row() -> None:
    shown = MISTRAL.replace(" {{ m.content }}</s>", " {{ m.thinking | tojson if m.thinking }}{{ m.content }}</s>")
    thoughts = {"name": "I look.", "arguments": ["left"]}
    (label,) = supervised(rendered(shown, [ASKED, answered(thinking=thoughts)]))
    assert label.endswith("A cat.</s>")
    with pytest.raises(SampleError, match="does not take `thinking`"):
        rendered(MISTRAL, [ASKED, answered(thinking=thoughts)])


ESCAPING_HEADLESS = MISTRAL.replace("{{ m.content }} [/", "{{ m.content | e }} [/")
LOOKED_INTO = Turn(role="user", content="Is <b> & <i> 'bold'?")


def test_a_tag_that_a_template_moves_behind_the_answer_it_begins_with_is_learned_where_it_stands() -> None:
    moving = ESCAPING_HEADLESS.replace(
        " {{ m.content }}</s>", " {{ m.content | replace('<b>', '') }}{{ '<b>' if '<b>' in m.content }}</s>"
    )
    assert supervised(rendered(moving, [LOOKED_INTO, answered("<b>A cat.")])) == ["A cat.<b></s>"]
    assert supervised(rendered(ESCAPING_HEADLESS, [LOOKED_INTO, answered("<b>A cat.")])) == ["<b>A cat.</s>"]


def test_an_answer_begins_at_its_words_where_a_template_fails_without_the_tag_before_them() -> None:
    failing = ESCAPING_HEADLESS.replace(
        "{% else %}", "{% else %}{{ raise_exception('No tag') if loop.index > 4 and '<b>' not in m.content }}"
    )
    messages = [*[LOOKED_INTO, answered()] * 2, LOOKED_INTO, answered("<b>A cat.")]
    assert supervised(rendered(failing, messages)) == ["A cat.</s>"] * 3


def test_a_template_that_insists_on_a_question_first_or_on_one_alone_is_learned_from() -> None:
    for condition in ("messages[0].role != 'user'", "messages | length > 2"):
        source = f"{{% if {condition} %}}{{{{ raise_exception('Not so') }}}}{{% endif %}}" + MISTRAL
        assert supervised(rendered(source, [ASKED, answered()])) == ["A cat.</s>"]


def test_a_template_that_shows_nothing_says_why_of_a_plain_question_and_not_of_a_system_turn() -> None:
    source = "{{ raise_exception('A system turn' if messages and messages[0].role == 'system' else 'Plainly not') }}"
    with pytest.raises(SampleError, match="Plainly not"):
        rendered(source, [Turn(role="system", content="S"), ASKED, answered()])


def test_an_end_before_a_header_that_all_turns_share_is_the_end_alone() -> None:
    source = (
        "{% for m in messages %}<|turn|>{{ m.content }}"
        "{% if not (loop.last and m.role == 'assistant') %}<|end|>{% endif %}{% endfor %}"
    )
    assert supervised(rendered(source, [ASKED, answered(), ASKED, answered("B")], ["<|turn|>", "<|end|>"])) == [
        "A cat.<|end|>", "B",
    ]  # fmt: skip
