"""Labels under the templates that models really have: those that TRL comes with, read from its package.

TRL's `*_training` templates mark what is to be learned themselves, so each is a witness for its plain twin.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from cal_pipeline.encoding.templates import Rendered
from cal_schemas.errors import SampleError
from cal_schemas.sample import Turn
from template_only import supervised
from trl_templates import SOURCES, TEMPLATES

# By hand, by the first of these that a template's name begins with: what its model writes last in a turn.
ENDS = {
    "cohere2": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<\uff5cend\u2581of\u2581sentence\uff5c>", "diffusion_gemma": "<turn|>", "gemma4": "<turn|>",
    "gemma": "<end_of_turn>", "glm4moe_training": "<|user|>", "glm4moe": "", "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>", "smolvlm": "<end_of_utterance>", "lfm2": "<|im_end|>", "llama3": "<|eot_id|>",
    "llava_next": "</s>", "muse": "<|eot|>", "nemotron": "<|im_end|>", "phi3": "<|end|>", "qwen": "<|im_end|>",
}  # fmt: skip
BEFORE_LAST = {"gptoss": "<|end|>"}
"""Where answers that are not the last end otherwise."""
LEADS = ("", " ", "<think>\n\n</think>\n\n", "\n<think></think>\n", "<think></think>", "<|channel|>final<|message|>",
         " to=user<|message|>")  # fmt: skip
"""What templates write between header and answer, and what belongs to the model's own turn."""


def turns(*contents: str, system: str | None = None) -> list[Turn]:
    """A question, an answer, and so on."""
    first = [] if system is None else [Turn(role="system", content=system)]
    return first + [Turn(role=("user", "assistant")[at % 2], content=text) for at, text in enumerate(contents)]


CONVERSATIONS = {
    "one question": turns("What is it?", "A cat."),
    "an image": turns("<image>\nWhat is it?", "A cat."),
    "two questions": turns("<image>\nWhat is it?", "A cat.", "And where?", "On the mat."),
    "a system turn": turns("What is it?", "A cat.", "And where?", "On the mat.", system="Be brief."),
    "one letter": turns("Which?", "A", "And?", "s"),
    "an opening answer": [Turn(role="assistant", content="You"), *turns("What is it?", "A cat.")],
}
REFUSED = {
    "Conversation roles must alternate": 8,  # Cohere 1 and 2, Gemma 1 to 3, on an opening answer.
    "System role not supported": 2,  # Gemma 1
}
"""Of all templates and conversations; the rest has the right labels."""


def pattern(name: str, answer: str, *, last: bool) -> str:
    end = next(end for known, end in ENDS.items() if name.startswith(known))
    if not last:
        end = next((other for known, other in BEFORE_LAST.items() if name.startswith(known)), end)
    return rf"(?:{'|'.join(map(re.escape, LEADS))})\s*{re.escape(answer)}\s*{re.escape(end)}"


def test_labels_are_answer_and_end_of_turn_under_every_template_and_few_conversations_are_refused() -> None:
    refused: Counter[str] = Counter()
    table = {}
    for name, template in TEMPLATES.items():
        for kind, messages in CONVERSATIONS.items():
            answers = [turn.content for turn in messages if turn.role == "assistant"]
            try:
                shown = supervised(template.render(messages))
            except SampleError as error:
                reason = next((known for known in REFUSED if known in str(error)), str(error))
                refused[reason] += 1
                table[name, kind] = f"refused: {error}"
                continue
            table[name, kind] = "right" if len(shown) == len(answers) and all(
                re.fullmatch(pattern(name, answer, last=answer is answers[-1]), text)
                for text, answer in zip(shown, answers, strict=False)
            ) else f"wrong: {shown}"  # fmt: skip
    wrong = {key: value for key, value in table.items() if value.startswith("wrong")}
    assert not wrong
    assert refused == REFUSED
    assert len(table) == 72 * 6
    assert sum(refused.values()) * 10 <= len(table)


TWINS = [name for name in SOURCES if f"{name}_training" in SOURCES]
WITNESSES = [name for name, source in SOURCES.items() if re.search(r"\{%-?\s*generation", source)]


def witness(name: str, messages: list[Turn], given: str) -> set[int]:
    """The characters that the template's own generation blocks hold, by transformers' account of `given`."""
    template, conversation = TEMPLATES[name], []
    for turn in messages:
        parts = template._facts.takes_parts(turn.role)
        content = [{"type": "text", "text": turn.content}] if parts else turn.content
        conversation.append({"role": turn.role, "content": content})
    (text,), (blocks,) = render_jinja_template(
        [conversation], chat_template=SOURCES[name], bos_token="<s>", eos_token="</s>",
        return_assistant_tokens_mask=True,
    )  # fmt: skip
    if "strftime_now" not in SOURCES[name]:
        assert text == given
    shift = len(given) - len(text)
    return {at + shift for start, stop in blocks for at in range(start, stop)}


def characters(rendering: Rendered) -> set[int]:
    return {at for start, stop in rendering.label_spans for at in range(start, stop)}


TOLD = ["one question", "one letter", "a system turn"]


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in WITNESSES for kind in TOLD[: 2 + (name != "gemma_training")]]
)
def test_a_template_s_own_generation_blocks_hold_all_labels_and_nothing_else_but_headers_and_what_ends_a_line(
    name: str, kind: str
) -> None:
    messages = CONVERSATIONS[kind]
    rendering = TEMPLATES[name].render(messages)
    marked = witness(name, messages, rendering.text)
    ours = characters(rendering)
    assert ours <= marked
    left = "".join(rendering.text[at] if at in marked - ours else "\0" for at in range(len(rendering.text)))
    headers = {TEMPLATES[name]._facts.header, "<|start|>assistant", "\n", "\n</s>", "</s>", " ", ""}
    assert set(re.split("\0+", left)) <= headers | {f"\n{header}" for header in headers}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", TWINS)
def test_a_plain_template_labels_what_its_training_twin_does_wherever_they_write_the_same(name: str, kind: str) -> None:
    messages = CONVERSATIONS[kind]
    try:
        ours = TEMPLATES[name].render(messages)
    except SampleError:
        with pytest.raises(SampleError):
            TEMPLATES[f"{name}_training"].render(messages)
        return
    theirs = TEMPLATES[f"{name}_training"].render(messages)
    if ours.text == theirs.text:
        assert characters(ours) == characters(theirs)
    else:  # Thoughts that only the twin keeps in earlier turns, or the token that GLM's twin adds.
        assert name.startswith(("qwen3", "glm4moe"))
        assert len(ours.label_spans) == len(theirs.label_spans)


WORDS = st.one_of(
    st.sampled_from([
        "", "A", "a", "s", "\n", "user", "assistant", "model", "ASSISTANT:", "Assistant", "system\n", "What is it?",
        "<|im_start|>assistant\n", "<|im_end|>", "<start_of_turn>model", "</s>", "[/INST]", "final", "<think>",
        "</think>", "<think>\nHm.\n</think>\n\nA cat.", "<think></think>", "a <b>bold</b> word", "  blanks  ",
        "Here <image> it is.", "<image>", "{{ 7 * 7 }}", "\u00a0wide\u3000", "qwslot0e", "<|channel>x<channel|>",
    ]),
    st.text(alphabet=st.sampled_from("Aas <>/|\n:\u00e9\U0001f600"), max_size=12),
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    roles = ["user", "assistant"] * draw(st.integers(1, 3))
    roles = draw(st.sampled_from([[], ["system"], ["assistant"], ["system", "assistant"]])) + roles
    question = draw(WORDS)
    return [Turn(role=role, content=draw(st.one_of(WORDS, st.just(question))), supervised=draw(st.integers(0, 4)) > 0)
            for role in roles]  # fmt: skip


@settings(max_examples=600, derandomize=True, database=None)
@given(st.sampled_from(sorted(SOURCES)), conversations())
def test_what_is_no_label_does_not_depend_on_the_answers_and_a_label_holds_its_answer(
    name: str, messages: list[Turn]
) -> None:
    template = TEMPLATES[name]
    answers = [turn for turn in messages if turn.role == "assistant"]
    try:
        rendering = template.render(messages)
    except SampleError:
        assume(False)
    for turn, (start, stop) in zip(
        [turn for turn in answers if turn.supervised and turn.content.strip()], rendering.label_spans, strict=False
    ):
        if len(rendering.label_spans) == sum(turn.supervised and bool(turn.content.strip()) for turn in answers):
            words = turn.content.split("</think>")[-1].split("<image>")[-1].strip()
            assert words in rendering.text[start:stop]
    if any(re.search(r"think>|<image>|channel|^\s*$", turn.content) or not turn.supervised for turn in answers):
        return
    # The same conversation with other answers of the same shape: nothing else may change.
    other = [
        Turn(role=turn.role, content=re.sub(r"\S(?s:.*)\S|\S", "zzz", turn.content)) if turn in answers else turn
        for turn in messages
    ]
    again = template.render(other)
    assert len(rendering.label_spans) == len(again.label_spans) == len(answers)
    assert outside(rendering) == outside(again)


def outside(rendering: Rendered) -> list[str]:
    places = [0, *(at for span in rendering.label_spans for at in span), len(rendering.text)]
    return [rendering.text[start:stop] for start, stop in zip(places[::2], places[1::2], strict=True)]
