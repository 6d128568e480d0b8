"""Which keys of a row make its conversation, by the row alone: pairs, captions, system prompts, tools and refusals."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from cal_pipeline.sources.layouts import PAIRS, ROW_KEYS, is_row_key, is_system_key, read_row
from cal_pipeline.sources.values import RowError
from cal_schemas.sample import Turn

ASKED, ANSWERED = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}
TURNS = [Turn(role="user", content="What?"), Turn(role="assistant", content="A cat.")]
ROW = {"messages": [ASKED, ANSWERED]}


def turns(row: dict[str, Any], num_images: int = 0) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in read_row(row, num_images)[0].turns]


def refused(row: dict[str, Any], num_images: int = 0) -> str:
    with pytest.raises(RowError) as error:
        read_row(row, num_images)
    return str(error.value)


@pytest.mark.parametrize("key", ["system", "system_prompt", "systemPrompt", "system_message", "systemMessage",
                                 "system-instruction", "SYSTEM_INSTRUCTIONS"])  # fmt: skip
def test_a_system_prompt_under_any_of_its_names_is_the_first_turn(key: str) -> None:
    assert is_system_key(key)
    assert is_row_key(key)
    assert turns({key: "Be brief.", **ROW})[0] == ("system", "Be brief.")
    assert turns({key: " \n", **ROW}) == turns({key: None, **ROW}) == turns(ROW)
    assert f"{key!r} is list; expected text" == refused({key: ["Be brief."], **ROW})
    same = {"messages": [{"role": "system", "content": " Be brief.\n"}, ASKED, ANSWERED]}
    assert turns({key: "Be brief. ", **same})[0] == ("system", " Be brief.\n")
    assert "keep one of the two" in refused({key: "Be long.", **same})
    assert key in read_row({key: "Be brief.", **ROW}, 0)[0].keys


@pytest.mark.parametrize("key", ["prompt", "message", "instructions", "system_id", "ecosystem", "file_system_prompt"])
def test_a_key_that_says_more_or_less_than_system_is_none(key: str) -> None:
    assert not is_system_key(key)
    assert is_row_key(key) == (key == "prompt")


def test_every_key_that_is_looked_at_is_known_and_no_other() -> None:
    for question, answer, others in PAIRS:
        assert {question, answer, *others} <= ROW_KEYS
    for key in ("tools", "functions", "segments", "objects", "label", "kto_tag", "loss_mask", "trainable", "id", "text",
                "image", "videos", "chosen", "template_inputs", "chat_template_kwargs", "history"):  # fmt: skip
        assert is_row_key(key)
    assert not is_row_key("score")


@pytest.mark.parametrize(("question", "answer"), [("prompt", "completion"), ("instruction", "output"),
                                                  ("query", "response")])  # fmt: skip
def test_a_question_with_its_answer_is_a_conversation(question: str, answer: str) -> None:
    expected = [("user", "What?"), ("assistant", "A cat.")]
    assert turns({question: "What?", answer: "A cat."}) == expected
    assert turns({question: [ASKED], answer: [ANSWERED]}) == expected
    assert turns({question: "What?", answer: "A cat.", **ROW}) == expected
    for alone in (
        {question: "Why?"},
        {answer: "A dog."},
        {question: "Why?", answer: ""},
        {question: "", answer: "No."},
    ):
        assert turns({**alone, **ROW}) == expected
    chat, _ = read_row({question: "What?", answer: "A cat.", **ROW}, 0)
    assert {question, answer, "messages", "image", "tools"} <= set(chat.keys)
    assert refused({question: "Why?", answer: "A cat.", **ROW}).startswith(
        f"the row has messages, and {question} with {answer}, and they differ"
    )
    for said in (7, ["What?"], {"role": "user"}):
        assert f"{question!r} is {type(said).__name__}; expected text or turns" == refused(
            {question: said, answer: "A cat."}
        )
    history = [["One?", "1"], ["Two?", "2"]]
    earlier = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    with_history = turns({question: "What?", answer: "A cat.", "history": history})
    assert with_history == (expected if question == "prompt" else earlier + expected)
    with_input = turns({question: "What?", answer: "A cat.", "input": "More."})
    assert with_input == ([("user", "What?\nMore."), expected[1]] if question == "instruction" else expected)


def test_an_input_or_a_history_that_is_no_text_and_no_pairs_is_refused() -> None:
    row = {"instruction": "What?", "output": "A cat."}
    assert refused({**row, "input": ["x"]}) == "'input' is list beside 'instruction' of str; both must be text"
    assert "'input' is str beside 'instruction' of list" in refused({**row, "instruction": [ASKED], "input": "x"})
    assert refused({**row, "history": "x"}).startswith("'history' is str; expected a list of questions")
    for pair in ("ab", ["a"], ["a", "b", "c"], ["a", 1], [None, "b"]):
        assert refused({**row, "history": [["a", "b"], pair]}) == "'history' 1 is no pair of a question and an answer"
    assert len(turns({**row, "history": (("a", "b"),)})) == 4
    assert len(turns({**row, "history": []})) == 2


def test_a_completion_that_is_not_wanted_is_refused_and_other_labels_are_not() -> None:
    pair = {"prompt": "What?", "completion": "A cat."}
    assert "'label' is false" in refused({**pair, "label": False})
    for label in (True, 0, None, "no"):
        assert len(turns({**pair, "label": label})) == 2
    assert len(turns({"instruction": "What?", "output": "A cat.", "label": False})) == 2


def test_the_first_caption_that_says_something_answers_the_images() -> None:
    assert turns({"text": "A cat.", "caption": "A dog."}, 2) == [("user", "<image>\n<image>"), ("assistant", "A cat.")]
    assert turns({"text": "", "caption": "A dog."}) == [("user", ""), ("assistant", "A dog.")]
    assert turns({"text": "", "caption": None}) == [("user", ""), ("assistant", "")]
    assert read_row({"caption": "A dog."}, 0)[0].keys[0] == "caption"
    assert refused({"caption": ["A dog."]}) == "'caption' is list; expected text"
    assert "conversation is an empty list" in refused({"messages": []})
    assert "conversation is an empty list" in refused({"conversations": [], "text": None})
    assert refused({"score": 1}).startswith("no conversation: neither messages")


def test_tools_are_a_list_or_its_json_as_a_whole_or_each() -> None:
    tool = {"name": "look", "strict": None}
    for spelled in ([tool], '[{"name": "look"}]', ['{"name": "look"}']):
        assert read_row({**ROW, "tools": spelled}, 0)[1] == [{"name": "look"}]
    for nothing in (None, "", " ", [], "[]", "null"):
        assert read_row({**ROW, "tools": nothing}, 0)[1] is None
    assert refused({**ROW, "tools": '{"name": "look"}'}) == "'tools' is dict; expected a list of functions"
    assert "'tools' is text, and no JSON" in refused({**ROW, "tools": ["look"]})


@pytest.mark.parametrize("key", ["chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag"])
def test_preferences_are_refused_by_name_and_what_is_none_is_not(key: str) -> None:
    for value in ("x", ["x"], {"a": "x"}):
        assert f"the row has {key!r}: preferences are not learned here" in refused({**ROW, key: value})
    for value in (None, "", [], 1.5):
        assert turns({**ROW, key: value}) == turns(ROW)
    if key == "kto_tag":
        assert "preferences" in refused({**ROW, key: False})
    else:
        assert turns({**ROW, key: True}) == turns(ROW)


@pytest.mark.parametrize("key", ["weight", "weights", "loss_weight", "loss_weights", "sample_weight", "loss_scale",
                                 "loss_mask", "token_weights", "completion_mask", "assistant_masks"])  # fmt: skip
def test_a_row_of_weight_zero_is_refused_of_another_too_and_a_thing_s_weight_is_its_own(key: str) -> None:
    for zero in (0, 0.0, Decimal(0)):
        assert "nothing of it is learned; leave it out of the data" in refused({**ROW, key: zero})
    for other in (0.5, 2, "0.5", [1, 0]):
        assert f"the row has {key!r}" in refused({**ROW, key: other})
    for nothing in (None, "12 kg", [], ["heavy"], 1, 1.0):
        assert turns({**ROW, key: nothing}) == turns(ROW)


@pytest.mark.parametrize("key", ["loss", "train", "trainable"])
def test_a_row_that_is_not_to_be_learned_is_refused_and_a_measured_loss_is_not(key: str) -> None:
    assert f"the row has {key!r} False" in refused({**ROW, key: False})
    for value in (True, 0.37, 0, None):
        assert turns({**ROW, key: value}) == turns(ROW)


def test_what_templates_do_not_get_here_is_refused_with_the_way_out() -> None:
    for key, way_out in (("functions", "give them as 'tools'"), ("chat_template_kwargs", "leave it out")):
        for value in ("x", ["x"], {"a": 1}):
            assert refused({**ROW, key: value}).endswith(way_out)
        for value in (None, "", [], {"a": None}, 3):
            assert turns({**ROW, key: value}) == turns(ROW)
    assert "'segments', text that follows no chat template" in refused(
        {**ROW, "segments": [{"text": "x", "label": True}]}
    )
    for value in ([{"mask": 1}], ["text"], "text", []):
        assert turns({**ROW, "segments": value}) == turns(ROW)


def test_boxes_that_each_model_spells_otherwise_are_refused_where_the_text_asks_for_them() -> None:
    for mark in ("<bbox>", "<ref-object>"):
        row = {"messages": [ASKED, {"role": "assistant", "content": f"At {mark}."}]}
        assert f"the row has 'objects' for {mark}" in refused({**row, "objects": {"bbox": [[1, 2]]}})
        assert len(turns({**row, "objects": {"bbox": []}})) == len(turns(row)) == 2
    assert turns({**ROW, "objects": {"bbox": [[1, 2]]}}) == turns(ROW)


def test_a_mark_of_another_model_is_refused_of_a_question_without_images_alone() -> None:
    def row(question: str, answer: str = "A cat.") -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    assert "turn 0 has '<image_1>' and the row no image" in refused(row("<image_1> What?"))
    assert len(turns(row("<image_1> What?"), 1)) == len(turns(row("What?", "<image_1>"))) == 2
    assert "turn 0 has the mark <video>; only images are known" in refused(row("<video>\nWhat?"), 1)
    assert len(turns(row("<video>\n</video> What?"))) == len(turns(row("What?", "<video>\n"))) == 2


def test_of_a_prompt_with_its_completion_the_completion_alone_is_learned() -> None:
    earlier = [ASKED, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "That."}]
    chat, _ = read_row({"prompt": earlier, "completion": [ANSWERED]}, 0)
    assert [(turn.role, turn.supervised) for turn in chat.turns] == [
        ("user", True), ("assistant", False), ("user", True), ("assistant", True),
    ]  # fmt: skip
    chat, _ = read_row({"query": "What?", "response": "A cat.", "history": [["a", "b"]]}, 0)
    assert all(turn.supervised for turn in chat.turns)


@pytest.mark.parametrize(
    "prompt", ["What?", [{"role": "system", "content": "S"}, {"role": "user", "content": "What?"}]]
)
def test_images_of_a_prompt_that_shows_none_stand_before_its_first_question(prompt: Any) -> None:
    chat, _ = read_row({"prompt": prompt, "completion": "A cat."}, 2)
    assert [turn.content for turn in chat.turns if turn.role == "user"] == ["<image>\n<image>\nWhat?"]
    shown = "What is <image> and <image>?" if isinstance(prompt, str) else [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]}
    ]  # fmt: skip
    chat, _ = read_row({"prompt": shown, "completion": "A cat."}, 2)
    assert chat.turns[0].content.count("<image>") == 2
    # Other layouts say themselves where their images are, and so does another spelling of the mark.
    for row in ({"query": "What?", "response": "A"}, {"prompt": "<|image_1|>What?", "completion": "A"},
                {"messages": [ASKED, ANSWERED]}):  # fmt: skip
        chat, _ = read_row(row, 1)
        assert "<image>" not in chat.turns[0].content
