import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.rows import parse, sample_from_json
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import template_inputs
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key

CHAT = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
TURNS = (Turn(role="user", content="<image>\nWhat?"), Turn(role="assistant", content="A cat."))


def row(**values: Any) -> Sample:
    return sample_from_json({"id": "x", "image": "a.png", "conversations": CHAT, **values}, "s/7")


def test_a_llava_row_becomes_turns_and_an_image_path() -> None:
    assert row() == Sample(sample_id="x", images=(ImageRef(path="a.png"),), messages=TURNS)


def test_turns_keep_their_order_and_number() -> None:
    chat = [{"from": "system", "value": "s"}, *CHAT, {"from": "human", "value": "And?"}, {"from": "gpt", "value": "b"}]
    messages = row(conversations=chat).messages
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
    assert sample_from_json({"id": "x", "conversations": CHAT}, "s/7").images == ()


@pytest.mark.parametrize(("source_id", "sample_id"), [("x", "x"), (17, "17"), (0, "0"), ("", ""), (None, "s/7")])
def test_an_id_of_any_type_is_text_and_a_missing_one_is_shard_and_row(source_id: Any, sample_id: str) -> None:
    assert row(id=source_id).sample_id == sample_id


@pytest.mark.parametrize(
    ("source_id", "sample_id", "note"),
    [
        (b"b3", "b3", None),
        (b"", "", None),
        (b"\xff\x01", "ff01", "the id is no UTF-8 text: its bytes in hexadecimal digits"),
        (["a", 1], '["a", 1]', None),
        (True, "true", None),
        (1.5, "1.5", None),
    ],
)
def test_no_id_is_spelled_as_python_would(source_id: Any, sample_id: str, note: str | None) -> None:
    sample = row(id=source_id)
    assert (sample.sample_id, sample.note) == (sample_id, note)


def test_repeated_ids_are_kept_as_they_are() -> None:
    samples = [sample_from_json({"id": "x", "conversations": CHAT}, f"s/{number}") for number in range(2)]
    assert [sample.sample_id for sample in samples] == ["x", "x"]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"conversations": None}, "no conversation: neither messages, conversations, text nor caption is set"),
        ({"conversations": []}, "conversation is an empty list; expected turns"),
        ({"conversations": "Hello"}, "conversation is str; expected turns (JSON text? Parse it before"),
        ({"conversations": ["Hello"]}, "turn 0 is str; expected an object"),
        (
            {"conversations": [*CHAT, {"from": "bot", "value": "a"}]},
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


@pytest.mark.parametrize("empty", [{"bytes": None, "path": None}, [{"bytes": None, "path": None}], {"path": ""}, {}])
def test_a_struct_of_nulls_is_no_image(empty: Any) -> None:
    chat = [{"from": "human", "value": "What?"}, CHAT[1]]
    sample = row(image=empty, conversations=chat)
    assert (sample.images, sample.problem) == ((), None)
    assert row(image="a.png", images=empty).images == (ImageRef(path="a.png"),)


def test_a_data_url_is_an_image_and_a_broken_one_a_problem() -> None:
    assert row(image="data:image/png;base64,iVBORw0K").images == (ImageRef(data=b"\x89PNG\r\n"),)
    assert "base64 is broken" in (row(image="data:image/png;base64,iVB?").problem or "")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"images": ["b.png"]}, "other images in 'images' than in 'image'"),
        ({"messages": CHAT[:1]}, "the row has messages, and conversations, and they differ"),
        ({"prompt": "Q", "completion": "B"}, "the row has conversations, and prompt with completion, and they differ"),
        ({"system": "a", "conversations": [{"from": "system", "value": "b"}, *CHAT]}, "'system' says 'a' and the sys"),
        ({"system": "a", "system_prompt": "b"}, "'system_prompt' says 'b' and the system turn 'a'"),
        ({"conversations": [{"from": "human", "value": "a", "content": "b"}]}, "turn 0 has 'value' and 'content'"),
    ],
)
def test_two_keys_that_say_different_things_are_a_problem_that_names_both(changed: Any, problem: str) -> None:
    assert problem in (row(**changed).problem or "")


@pytest.mark.parametrize(
    "changed",
    [
        {"images": ["a.png"]}, {"messages": [{"role": "user", "content": "<image>\nWhat?"}, CHAT[1]]},
        {"prompt": "<image>\nWhat?", "completion": "A cat."},
    ],
)  # fmt: skip
def test_two_keys_that_say_the_same_are_one(changed: Any) -> None:
    assert row(**changed) == row()


def test_a_system_prompt_beside_the_turns_is_the_system_turn() -> None:
    as_turn = [{"from": "system", "value": "Be brief."}, *CHAT]
    assert row(system="Be brief.") == row(conversations=as_turn) == row(system="Be brief. ", conversations=as_turn)
    assert sample_key(row(system="Be brief.")) != sample_key(row())


def test_a_turn_that_is_not_learned_is_another_sample() -> None:
    unlearned = row(conversations=[CHAT[0], {**CHAT[1], "loss": 0}])
    assert unlearned.messages == (TURNS[0], Turn(role="assistant", content="A cat.", supervised=False))
    assert sample_key(unlearned) != sample_key(row())
    # What is said of a question changes nothing: it has no labels anyway.
    assert row(conversations=[{**CHAT[0], "loss": False, "weight": 0}, CHAT[1]]) == row()


def test_nan_is_null_as_pandas_writes_it() -> None:
    nulls = {"image": math.nan, "system": math.nan, "tools": math.nan, "video": math.nan, "history": math.nan}
    chat = [{"from": "human", "value": "What?"}, CHAT[1]]
    assert row(id=math.nan, conversations=chat, messages=math.nan, **nulls) == row(
        id=None, image=None, conversations=chat
    )
    assert "'weight' nan" in (row(weight=math.nan).problem or "")


def test_an_empty_spelling_of_a_turn_does_not_hide_the_other() -> None:
    chat = [{"from": "", "role": "user", "value": "", "content": "<image>\nWhat?"},
            {"from": None, "role": "assistant", "value": "", "content": "A cat."}]  # fmt: skip
    assert row(conversations=chat) == row()
    assert row(conversations=[{"from": "gpt", "value": ""}]).messages == (Turn(role="assistant", content=""),)


def test_empty_turns_give_way_to_what_else_the_row_says() -> None:
    assert row(conversations=[], prompt="<image>\nWhat?", completion="A cat.") == row()
    assert row(conversations=None, text="", caption="A cat.") == row(conversations=None, caption="A cat.")
    assert "an empty list" in (row(conversations=[]).problem or "")


@pytest.mark.parametrize("weight", [0.5, "0.5", "0", Decimal("0.5"), [0, 1], [0.5]])
def test_the_weight_of_a_row_is_refused_however_it_is_spelled(weight: Any) -> None:
    assert "'weight'" in (row(weight=weight).problem or "")


@pytest.mark.parametrize("zero", [0, 0.0, False, Decimal("0.00")])
def test_zero_of_any_type_leaves_a_turn_unlearned(zero: Any) -> None:
    assert row(conversations=[CHAT[0], {**CHAT[1], "loss": zero}]) == row(
        conversations=[CHAT[0], {**CHAT[1], "loss": False}]
    )
    for nothing in (None, "", [], {}):
        assert row(conversations=[CHAT[0], {**CHAT[1], "loss": nothing}]) == row()


def test_images_inside_turns_are_in_the_order_of_their_marks() -> None:
    def part(name: str) -> dict[str, str]:
        return {"type": "image", "image": name}

    chat = [{"role": "user", "content": [part("a.png"), {"type": "text", "text": "Or"}, part("b.png")]}, CHAT[1],
            {"role": "user", "content": "<image>?", "images": ["c.png"]}, CHAT[1]]  # fmt: skip
    sample = row(image=None, conversations=chat)
    assert [image.path for image in sample.images] == ["a.png", "b.png", "c.png"]
    assert row(images=["a.png", "b.png", "c.png"], image=None, conversations=chat) == sample
    assert "other images than its turns" in (row(image="d.png", conversations=chat).problem or "")


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("jpg", b"\xff\xd8\xff\xe0", True), ("anything", PNG, True), ("x", {"bytes": PNG, "path": None}, True),
        ("img", "a.png", True), ("image_path", "coco/1", True), ("image_file", "a.webp", True), ("file", "a.JPG", True),
        ("url", "https://example.org/a.jpg?w=3", True), ("pictures", ["a.png"], True), ("pixel_values", "x", True),
        ("x", "data:image/png;base64,AA==", True),
        ("image_id", "000017", False), ("image_id", 17, False), ("source", "coco", False),
        ("note", "see a.png or b.jpg", False),
        ("embedding", b"\x00\x01", False), ("image_caption", "A cat.", False), ("img", None, False), ("img", "", False),
    ],
)  # fmt: skip
def test_an_image_under_a_key_that_nobody_reads_is_named(key: str, value: Any, named: bool) -> None:
    chat = [{"from": "human", "value": "What?"}, CHAT[1]]
    sample = row(image=None, conversations=chat, **{key: value})
    assert (sample.problem is not None) == named
    if named:
        assert (sample.problem or "").startswith(f"no image is set, and {key!r} holds ")
    # Beside an image it is only listed.
    assert row(**{key: value}).problem is None
    assert row(**{key: value}).unread == ((key,) if value else ())


def test_keys_that_nobody_reads_are_listed_of_a_row_that_could_not_be_parsed_too() -> None:
    sample = sample_from_json({"image": "0.png", "description": "A cat.", "empty": ""}, "s/0")
    assert "no conversation" in (sample.problem or "")
    assert sample.unread == ("description",)


@pytest.mark.parametrize(
    ("question", "refused"),
    [
        ("<video>\nWhat?", True), ("<image><video>\nWhat?", True), ("<audio>", True), ("<video><image>\nWhat?", True),
        ("What does <video> mean?", False), ("<video>\n<source>\n</video>\nIs this right?", False),
        ("<video> tags?", False), ("What?\n<video>", True), ("What?\n<audio> \nSay.", True),
        ("\r\n<video>\r\nWhat?", True),
        ("What?\n<video>\n</video>", False), ("Is\n<video> a tag?", False),
    ],
)  # fmt: skip
def test_the_mark_of_a_video_is_refused_and_a_tag_is_not(question: str, refused: bool) -> None:
    sample = row(conversations=[{"from": "human", "value": question}, CHAT[1]])
    assert (sample.problem is not None) == refused


def test_tools_may_be_objects_or_their_json_as_a_whole_or_each() -> None:
    tool = {"name": "look", "parameters": {"at": {"type": "string"}}}
    for spelled in ([tool], json.dumps([tool]), [json.dumps(tool)], [{**tool, "description": None}]):
        assert row(tools=spelled).tools == [tool]
    for empty in (None, [], "", "[]"):
        assert row(tools=empty) == row()
    assert "'tools' is text, and no JSON" in (row(tools="look").problem or "")


def test_an_annotated_shard_measured_again_keeps_what_its_template_gets() -> None:
    first = row(conversations=[CHAT[0], {**CHAT[1], "loss": 0, "reasoning_content": "hm"}], tools=[{"name": "look"}])
    again = row(template_inputs=template_inputs(first))
    assert (again.messages, again.tools) == (first.messages, first.tools)
    for unfit in ('{"turns": [{}]}', '{"turns": [[], []]}', "[]", '{"turns": {"a": 1}}'):
        assert "'template_inputs' does not fit" in (row(template_inputs=unfit).problem or "")


def test_lone_surrogates_are_replaced_wherever_text_is_and_the_note_names_the_places() -> None:
    chat = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "\udc80\udc81 b"}]
    sample = row(id="\ud800", image="\udfff.png", conversations=chat)
    assert sample.messages is not None
    assert (sample.sample_id, sample.images[0].path, sample.messages[1].content) == ("\ufffd", "\ufffd.png", "\ufffd b")
    assert sample.note == "characters that are not UTF-8 were replaced by U+FFFD in: id, image path, turn 1"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "from",
                    "value",
                    "role",
                    "content",
                    "type",
                    "text",
                    "bytes",
                    "path",
                    "gpt",
                    "image",
                    "loss",
                    "tool_calls",
                    "function",
                    "name",
                    "images",
                    "mask",
                    "train",
                    "url",
                ]
            ),
            inner | st.sampled_from(["gpt", "text", "image"]),
            max_size=4,
        )
    ),
    max_leaves=10,
)
KEYS = ["id", "image", "images", "conversations", "messages", "prompt", "completion", "query", "response", "history",
        "instruction", "output", "input",
        "text", "system", "tools", "template_inputs", "objects", "weight", "label", "img", "video"]  # fmt: skip
ROWS = st.dictionaries(st.sampled_from(KEYS), ANYTHING) | ANYTHING


@given(ROWS)
def test_any_row_becomes_a_sample_that_can_be_stored(value: Any) -> None:
    sample = sample_from_json(value, "s/0")
    assert (sample.messages is None) == (sample.problem is not None)
    sample_key(sample)
    (template_inputs(sample) or "").encode("utf-8")
    texts = [sample.sample_id, sample.problem or "", sample.note or ""]
    texts += [turn.content for turn in sample.messages or ()] + [image.path or "" for image in sample.images]
    for text in texts:
        text.encode("utf-8")


@pytest.mark.parametrize(
    ("question", "refused"),
    [
        ("Image 1: <img>a.png</img>\nWhat?", True), ("<|image_1|>\nWhat?", True), ("<image 1> What?", True),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", True), ("<ImageHere>What?", True),
        ('Is <img src="a.png"> right?', False), ("<image> and <img> tags?", False), ("<img></img>", False),
    ],
)  # fmt: skip
def test_an_image_as_other_models_data_spell_it_is_refused_where_the_row_has_none(question: str, refused: bool) -> None:
    chat = [{"from": "human", "value": question}, CHAT[1]]
    assert (row(image=None, conversations=chat).problem is not None) == refused
    assert row(conversations=chat).problem is None  # There the marks of the row's own images decide.
    answer = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": question}]
    assert row(image=None, conversations=answer).problem is None


@pytest.mark.parametrize(
    ("more", "refused"),
    [({"crop": [0, 0, 9, 9]}, True), ({"max_pixels": 100}, True), ({"page": 2}, True), ({"crop": None}, False),
     ({"width": 9, "height": 9}, False)],
)  # fmt: skip
def test_an_image_whose_object_says_to_show_only_part_of_it_is_refused(more: dict[str, Any], refused: bool) -> None:
    sample = row(image={"path": "a.png", **more})
    assert (sample.problem is not None) == refused
    assert not refused or f"image has {next(iter(more))!r}" in (sample.problem or "")


@pytest.mark.parametrize("key", ["token_weights", "completion_mask", "assistant_masks"])
def test_a_list_of_what_is_learned_of_a_row_s_tokens_is_refused(key: str) -> None:
    assert f"the row has {key!r} [0, 1]" in (row(**{key: [0, 1]}).problem or "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"image": "a.png", "image": "b.png", "conversations": %s}', "the row has 'image' twice: 'a.png'"),
        ('{"image": "a.png", "train": false, "train": true, "conversations": %s}', "the row has 'train' twice"),
        ('{"image": "a.png", "conversations": [], "conversations": %s}', "the row has 'conversations' twice"),
        ('{"image": {"path": "a.png", "path": "b.png"}, "conversations": %s}', "a path of ConflictingValues"),
        ('{"image": "a.png", "image": "a.png", "conversations": %s}', None),
        ('{"image": "a.png", "score": 1, "score": 2, "conversations": %s}', None),
    ],
)
def test_a_key_that_an_object_has_twice_is_refused_where_it_is_read_and_the_values_differ(
    text: str, problem: str | None
) -> None:
    sample = sample_from_json(parse(text % json.dumps(CHAT)), "s/7")
    assert (sample.problem is None) == (problem is None)
    assert (problem or "") in (sample.problem or "")


@pytest.mark.parametrize("keys", ['"value": "A", "value": "B"', '"value": "A", "weight": 0, "weight": 1'])
def test_a_turn_with_a_key_twice_is_refused_and_only_its_row(tmp_path: Path, keys: str) -> None:
    good = json.dumps({"image": "a.png", "conversations": CHAT})
    bad = '{"image": "a.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", %s}]}' % keys  # noqa: UP031
    for name, text in (("a.json", f"[{good}, {bad}, {good}]"), ("a.jsonl", f"{good}\n{bad}\n{good}\n")):
        (tmp_path / name).write_text(text)
        (shard,) = plan_shards([str(tmp_path / name)], [str(tmp_path)])
        assert [sample.problem is None for sample in read_samples(shard)] == [True, False, True]
