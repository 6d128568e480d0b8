from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_pipeline.json_source import sample_from_json
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TURNS = (Turn(role="user", content="<image>\nWhat?"), Turn(role="assistant", content="A cat."))


def row(**values: Any) -> Sample:
    return sample_from_json({"id": "x", "image": "a.png", "conversations": TALK, **values}, "s/7")


def test_a_llava_row_becomes_turns_and_an_image_path() -> None:
    assert row() == Sample(sample_id="x", images=(ImageRef(path="a.png"),), messages=TURNS)


def test_turns_keep_their_order_and_number() -> None:
    talk = [{"from": "system", "value": "s"}, *TALK, {"from": "human", "value": "And?"}, {"from": "gpt", "value": "b"}]
    messages = row(conversations=talk).messages
    assert messages is not None
    assert [turn.role for turn in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.content for turn in messages] == ["s", "<image>\nWhat?", "A cat.", "And?", "b"]


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"), ("model", "assistant"),
     ("system", "system")],
)  # fmt: skip
@pytest.mark.parametrize(("who", "what"), [("from", "value"), ("role", "content")])
def test_every_spelling_of_a_role_is_understood(who: str, what: str, name: str, role: str) -> None:
    assert row(conversations=[{who: name, what: "t"}]).messages == (Turn(role=role, content="t"),)


def test_messages_are_read_where_conversations_are_not_set() -> None:
    sample = row(conversations=None, messages=[{"role": "user", "content": "q"}])
    assert sample.messages == (Turn(role="user", content="q"),)


@pytest.mark.parametrize(
    ("images", "paths"),
    [
        ({"image": ["a.png", "b.png"]}, ["a.png", "b.png"]),
        ({"image": None, "images": ["b.png", "a.png"]}, ["b.png", "a.png"]),
        ({"image": {"path": "c.png"}}, ["c.png"]),
        ({"image": [{"bytes": None, "path": "c.png"}, "d.png"]}, ["c.png", "d.png"]),
        ({"image": None}, []),
        ({"image": ""}, []),
        ({"image": []}, []),
        ({"image": None, "images": [None]}, []),
    ],
)
def test_images_come_in_order_and_none_is_text_only(images: dict[str, Any], paths: list[str]) -> None:
    sample = row(**images)
    assert [image.path for image in sample.images] == paths
    assert sample.problem is None


def test_a_row_without_an_image_key_is_text_only() -> None:
    assert sample_from_json({"id": "x", "conversations": TALK}, "s/7").images == ()


@pytest.mark.parametrize(("source_id", "sample_id"), [("x", "x"), (17, "17"), (0, "0"), ("", ""), (None, "s/7")])
def test_an_id_of_any_type_is_text_and_a_missing_one_is_shard_and_row(source_id: Any, sample_id: str) -> None:
    assert row(id=source_id).sample_id == sample_id


def test_repeated_ids_are_kept_as_they_are() -> None:
    samples = [sample_from_json({"id": "x", "conversations": TALK}, f"s/{number}") for number in range(2)]
    assert [sample.sample_id for sample in samples] == ["x", "x"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"conversations": None}, "no conversation: neither messages, conversations, text nor caption is set"),
        ({"conversations": []}, "conversation is an empty list; expected turns"),
        ({"conversations": "Hello"}, "conversation is str; expected turns"),
        ({"conversations": ["Hello"]}, "turn 0 is str; expected an object"),
        (
            {"conversations": [*TALK, {"from": "bot", "value": "a"}]},
            "turn 2 has the role 'bot'; expected one of human,",
        ),
        ({"conversations": [{"value": "a"}]}, "turn 0 has the role None; expected one of human,"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "turn 0 has the role ['gpt']; expected one of human,"),
        ({"conversations": [{"from": "gpt"}]}, "turn 0 has content of type NoneType; expected text or typed parts"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "turn 0 has content of type int; expected text"),
        ({"conversations": [{"from": "gpt", "value": [{"type": "video"}]}]}, "turn 0 has a content part of type 'vid"),
        ({"conversations": [{"from": "gpt", "value": ["a"]}]}, "turn 0 has a content part of type None; expected"),
        ({"conversations": [{"from": "gpt", "value": [{"type": "text"}]}]}, "turn 0 has a text part whose text is No"),
        ({"image": 3}, "image is int; expected a path, bytes, {bytes, path} or a list of those"),
        ({"image": {"path": 3}}, "image has bytes of NoneType and a path of int; expected bytes and a string"),
        ({"image": {"bytes": "iVBOR"}}, "image has bytes of str and a path of NoneType; expected bytes and a string"),
    ],
)
def test_what_does_not_fit_is_the_samples_problem(changed: dict[str, Any], problem: str) -> None:
    sample = row(**changed)
    assert (sample.problem or "")[: len(problem)] == problem
    assert (sample.sample_id, sample.messages) == ("x", None)


def test_typed_parts_become_text_with_image_marks() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}, {"type": "text", "text": "b"}]
    messages = row(conversations=[{"role": "user", "content": content}]).messages
    assert messages == (Turn(role="user", content="<image>\nWhat?\n<image>\nb"),)


@pytest.mark.parametrize(("images", "marks"), [(None, ""), ("a.png", "<image>"), (["a", "b"], "<image>\n<image>")])
def test_a_caption_is_the_answer_to_its_images(images: Any, marks: str) -> None:
    sample = row(image=images, conversations=None, caption="A cat.")
    assert sample.messages == (Turn(role="user", content=marks), Turn(role="assistant", content="A cat."))


def test_lone_surrogates_are_replaced_wherever_text_is_and_the_note_names_the_places() -> None:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\udc80\udc81 b"}]
    sample = row(id="\ud800", image="\udfff.png", conversations=talk)
    assert sample.messages is not None
    assert (sample.sample_id, sample.images[0].path, sample.messages[1].content) == ("\ufffd", "\ufffd.png", "\ufffd b")
    assert sample.note == "characters that are not UTF-8 were replaced by U+FFFD in: id, image path, turn 1"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "bytes", "path", "gpt", "image"]),
            inner | st.sampled_from(["gpt", "text", "image"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)
ROWS = st.dictionaries(st.sampled_from(["id", "image", "images", "conversations", "messages"]), ANYTHING) | ANYTHING


@given(ROWS)
def test_any_row_becomes_a_sample_that_can_be_stored(value: Any) -> None:
    sample = sample_from_json(value, "s/0")
    assert (sample.messages is None) == (sample.problem is not None)
    sample_key(sample)
    texts = [sample.sample_id, sample.problem or "", sample.note or ""]
    texts += [turn.content for turn in sample.messages or ()] + [image.path or "" for image in sample.images]
    for text in texts:
        text.encode("utf-8")
