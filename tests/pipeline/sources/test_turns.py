"""From turns as sources spell them to turns: every spelling of a role, a part and a call, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cal_pipeline.sources.turns import read_turns, validate_media
from cal_pipeline.sources.values import RowError
from cal_schemas.sample import ImageRef, Turn

CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


def turn(**item: Any) -> Turn:
    (turn,) = read_turns([{"role": "assistant", "content": "A cat.", **item}]).turns
    return turn


def refused(*items: Any) -> str:
    with pytest.raises(RowError) as error:
        read_turns(list(items))
    return str(error.value)


@pytest.mark.parametrize("role", ["function_call", "tool_call"])
@pytest.mark.parametrize("said", ['{"name": "look", "arguments": {"at": "it"}}',
                                  '[{"name": "look", "arguments": "{\\"at\\": \\"it\\"}"}]'])  # fmt: skip
def test_a_role_of_calls_makes_a_turn_that_calls_and_says_nothing(role: str, said: str) -> None:
    expected = Turn(role="assistant", content="", extra={"tool_calls": [CALL]})
    assert read_turns([{"from": role, "value": said}]).turns == [expected]
    beside = turn(role=role, content=said, tool_calls=[{"name": "zoom"}])
    assert [call["function"]["name"] for call in beside.extra["tool_calls"]] == ["zoom", "look"]


def test_calls_are_what_templates_take_however_they_are_spelled() -> None:
    for spelled in ([CALL], CALL, [CALL["function"]], '[{"function": {"name": "look", "arguments": {"at": "it"}}}]'):
        assert turn(tool_calls=spelled).extra == {"tool_calls": [CALL]}
    assert turn(function_call=CALL["function"]).extra == {"tool_calls": [CALL]}
    assert turn(tool_calls=[CALL], function_call=CALL["function"]).extra == {"tool_calls": [CALL, CALL]}
    named = {**CALL, "id": "c1", "type": "custom"}
    assert turn(tool_calls=[named]).extra == {"tool_calls": [named]}
    left = {"name": "look", "arguments": "left"}
    assert turn(tool_calls=[left]).extra == {"tool_calls": [{"type": "function", "function": left}]}
    assert turn(content=None, tool_calls=[CALL]).content == ""
    assert turn(content=None, function_call=CALL["function"]).content == ""


@pytest.mark.parametrize("calls", [[1], [{"function": "look"}], [{"function": {"arguments": "x"}}], ["look"],
                                   [{"function": {"name": 1}}], [{"arguments": "x"}]])  # fmt: skip
def test_what_is_no_call_of_a_function_with_a_name_is_refused(calls: Any) -> None:
    assert "turn 0: 'tool_calls' holds no call of a function with a name" in refused(
        {"role": "assistant", "content": "", "tool_calls": calls}
    )


def test_calls_and_arguments_that_are_no_json_are_refused() -> None:
    for calls in ("{", [{"name": "look", "arguments": "{at"}]):
        assert "is text, and no JSON" in refused({"role": "assistant", "content": "", "tool_calls": calls})
    assert "turn 0, a tool_call, is text, and no JSON" in refused({"from": "tool_call", "value": "look"})


def test_what_templates_take_of_a_turn_is_kept_and_what_is_empty_is_not() -> None:
    given = {"reasoning_content": "I look.", "reasoning": "R", "thinking": "T", "tool_call_id": "c1"}
    assert turn(**given).extra == given
    assert turn(reasoning_content="", reasoning=None, thinking=math.nan, tool_calls=[], function_call={}).extra == {}
    assert turn(role="tool", name="look").extra == {"name": "look"}
    assert turn(role="tool", name="").extra == {}
    assert turn(role="user", name="Ann").extra == {}


def test_keys_that_nothing_is_made_of_are_listed() -> None:
    read = {
        "refusal": False,
        "reasoning": "R",
        "image": None,
        "video": None,
        "audios": [],
        "loss": 1,
        "tool_call_id": "c",
    }
    given = {"role": "user", "content": "Q", **read, "name": "Ann", "cached": False, "rank": 0, "note": "", 7: "x"}
    assert read_turns([given]).unread == {"name", "cached", "rank", "7"}
    assert read_turns([{"role": "tool", "content": "Q", "name": "look", "extra": 1}]).unread == {"extra"}


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_text_parts_join_as_they_are(kind: str) -> None:
    assert turn(content=[{"type": kind, "text": "A "}, {"type": kind, "text": "cat."}]).content == "A cat."


@pytest.mark.parametrize("kind", ["image", "image_url", "input_image"])
@pytest.mark.parametrize(
    ("source", "ref"),
    [
        ({"image": "a.png"}, ImageRef(path="a.png")), ({"path": "a.png"}, ImageRef(path="a.png")),
        ({"image_url": {"url": "a.png", "detail": "low"}}, ImageRef(path="a.png")),
        ({"url": "a.png", "path": "a.png"}, ImageRef(path="a.png")), ({"bytes": b"png"}, ImageRef(data=b"png")),
        ({"base64": "cG5n"}, ImageRef(data=b"png")), ({"base64": b"png"}, ImageRef(data=b"png")),
        ({"image": "a.png", "detail": "low", "id": 1, "index": 2, "note": None, "loss": 1}, ImageRef(path="a.png")),
    ],
)  # fmt: skip
def test_an_image_part_names_its_image_however_it_is_spelled(kind: str, source: dict[str, Any], ref: ImageRef) -> None:
    chat = read_turns([{"role": "user", "content": [{"type": kind, **source}, {"type": "text", "text": "What?"}]}])
    assert (chat.images, chat.turns[0].content) == ([ref], "<image>\nWhat?")


def test_a_mark_stands_on_a_line_of_its_own_between_texts() -> None:
    image, text = {"type": "image"}, {"type": "text", "text": "x"}
    for parts, content in (
        ([text, image, text], "x\n<image>\nx"), ([image, image], "<image>\n<image>"),
        ([text, text, image], "xx\n<image>"),
        ([{"type": "text", "text": ""}, image], "<image>"), ([image], "<image>"), ([], ""),
        ([{"type": "text", "text": "<image>"}, text], "<image>\nx"),
    ):  # fmt: skip
        assert turn(role="user", content=parts).content == content


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "image", "path": "a.png", "crop": [1]}, "an image part with 'crop'; known are image"),
        ({"type": "image", "path": "a.png", "url": "b.png"}, "an image part that names more than one image"),
        ({"type": "image", "image": ["a.png", "b.png"]}, "an image part that names more than one image"),
        ({"type": "text", "text": None}, "a text part whose text is NoneType"),
        ({"type": "text", "text": "x", "image_url": "a.png"}, "a text part with 'image_url'"),
        ({"type": "text", "text": "x", "image": "a.png"}, "a text part with 'image'"),
        ({"type": "text", "text": "x", "video": "a.mp4"}, "a text part with 'video'"),
        ({"type": "text", "text": "x", "loss": 0}, "a content part with 'loss' 0: a turn is learned as a whole"),
        ({"type": "video", "video": "a.mp4"}, "a content part of type 'video'"),
        ("x", "a content part of type None"),
    ],
)
def test_a_part_that_would_change_what_is_measured_is_refused_by_name(part: Any, problem: str) -> None:
    assert refused({"role": "user", "content": "Q"}, {"role": "user", "content": [part]}).startswith(
        f"turn 1 has {problem}"
    )


def test_a_part_that_is_learned_is_like_any_other() -> None:
    for loss in (1, True, None):
        assert turn(content=[{"type": "text", "text": "A cat.", "loss": loss}]).content == "A cat."


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("x", "turn 0 is str; expected an object"),
        ({"role": "assistant", "content": "A", "refusal": "No."}, "turn 0 has 'refusal'"),
        ({"role": "user", "from": "gpt", "content": "A"}, "turn 0 has 'from' and 'role', and they differ"),
        ({"role": "user", "content": "A", "value": "B"}, "turn 0 has 'value' and 'content', and they differ"),
        ({"content": "A"}, "turn 0 has the role None; expected one of human"),
        ({"role": "critic", "content": "A"}, "turn 0 has the role 'critic'"),
        ({"role": ["user"], "content": "A"}, "turn 0 has the role ['user']"),
        ({"role": "user"}, "turn 0 has content of type NoneType"),
        ({"role": "user", "content": None, "value": ""}, None),
        ({"role": "user", "content": 7}, "turn 0 has content of type int"),
        ({"role": "user", "content": "A", "audio": "a.wav"}, "turn 0 has 'audio': sound"),
        ({"role": "user", "content": "A", "videos": ["a.mp4"]}, "turn 0 has 'videos': a video"),
        ({"role": "user", "content": "<image>", "images": ["a.png", "b.png"]}, "turn 0 has 2 images of its own and 1"),
        ({"role": "user", "content": [{"type": "image", "path": "a.png"}], "images": ["b.png"]}, "turn 0 has 1 images"),
        ({"role": "user", "content": "A", "train": True}, "turn 0 (user) has 'train' True: only the assistant's"),
        ({"role": "user", "content": "A", "train": False}, None),
        ({"role": "user", "content": "A", "loss": 1}, None),
    ],
)
def test_a_turn_that_cannot_be_read_as_it_is_meant_is_refused_by_name(item: Any, problem: str | None) -> None:
    if problem is None:
        assert read_turns([item]).turns[0].supervised
    else:
        assert refused(item).startswith(problem)


def test_what_is_no_list_of_turns_is_refused() -> None:
    for value, said in (([], "an empty list"), (None, "NoneType"), ({}, "dict"), ("x", "str")):
        with pytest.raises(RowError, match=f"conversation is {said}; expected turns"):
            read_turns(value)


def test_one_learning_key_of_zero_leaves_a_turn_unlearned_whatever_others_say() -> None:
    for keys in ({"loss": 0, "weight": 1}, {"loss": 1, "weight": 0}, {"train": False}):
        assert not turn(**keys).supervised
    for keys in ({"loss": 1}, {"loss": None}, {"loss": ""}, {"mask": []}, {"weight": {}}, {"ignore": 0}):
        assert turn(**keys).supervised
    with pytest.raises(RowError, match="'loss' nan"):
        turn(loss=math.nan)


def test_a_row_with_a_video_or_a_sound_is_refused_and_an_empty_key_is_not() -> None:
    for key, what in (("video", "a video"), ("videos", "a video"), ("audio", "sound"), ("audios", "sound")):
        validate_media({key: None, "x": 1}, "the row")
        with pytest.raises(RowError, match=f"the row has '{key}': {what}; only images"):
            validate_media({key: ["a"]}, "the row")


def test_images_of_turns_come_in_the_order_of_turns_and_those_said_twice_once() -> None:
    chat = read_turns([
        {"role": "user", "content": "<image> <image>", "images": ["a.png", "b.png"]},
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": [{"type": "image", "path": "c.png"}], "image": "c.png"},
    ])  # fmt: skip
    assert [ref.path for ref in chat.images] == ["a.png", "b.png", "c.png"]
