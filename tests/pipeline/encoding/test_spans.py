"""What became of the placeholders, from a processor's report or from its text alone."""

import time

import pytest

from cal_pipeline.encoding.spans import Expansion, Processed, recovered_expansion, reported_expansion
from cal_schemas.errors import SampleError

MARKERS = ("<fake>", "<row>", "<end>")


def recovered(rendered: str, expanded: str, bos: str | None = "<s>") -> Expansion:
    return recovered_expansion(rendered, expanded, image_token="<image>", markers=MARKERS, bos=bos, name="P")


@pytest.mark.parametrize(
    ("rendered", "expanded", "images"),
    [
        ("a <image> cat", "a <image> cat", ["<image>"]),
        ("a <image> cat", "a <fake><image><image><fake> cat", ["<fake><image><image><fake>"]),
        ("<image>cat", "<fake><image><fake> cat", ["<fake><image><fake> "]),
        ("<image><image>cat", "<fake><image><fake><image><fake>cat", ["<fake><image><fake><image><fake>"]),
        ("a<image>b<image>c", "a<row><image>b<row><image>c", ["<row><image>", "<row><image>"]),
        ("<image>cat", "<image><s>cat", ["<image>"]),
        ("a <image>", "<s>a <fake><image>", ["<fake><image>"]),
        ("cat", "<s>cat", []),
        # The words' own special token is theirs, though a run of markers could have swallowed it.
        ("<image><end>cat<end>", "<fake><image><fake><end>cat<end>", ["<fake><image><fake>"]),
    ],
)
def test_runs_are_the_images_and_the_words_are_found_again(rendered: str, expanded: str, images: list[str]) -> None:
    expansion = recovered(rendered, expanded)
    assert [expanded[start:stop] for start, stop in expansion.inserted] == images
    if "cat" in rendered:
        at = rendered.index("cat")
        assert expanded[expansion.offset(at) : expansion.offset(at + 3)] == "cat"


@pytest.mark.parametrize(
    "expanded", ["a <image> dog", "a  cat", "x<image> cat", "a <image>! cat", "a <fake> cat", "a <image><s> cat"]
)
def test_other_words_than_those_given_are_refused(expanded: str) -> None:
    with pytest.raises(SampleError, match="P changes the text around its images"):
        recovered("a <image> cat", expanded)


def test_without_a_bos_the_run_is_the_image_s_all_the_same() -> None:
    assert recovered("<image>cat", "<fake><image>cat", bos=None).inserted == ((0, 13),)
    with pytest.raises(SampleError, match="changes the text"):
        recovered("<image>cat", "<s><fake><image>cat", bos=None)


def test_a_mismatch_behind_many_images_is_found_in_no_time() -> None:
    rendered, expanded = "<image>" * 8 + "cat", "<fake><image>" * 4000 + "dog"
    began = time.process_time()
    with pytest.raises(SampleError):
        recovered(rendered, expanded)
    assert time.process_time() - began < 2


def test_a_report_s_spans_move_what_stands_behind_them() -> None:
    report = [[
        {"span": (2, 9), "new_span": (2, 20), "replacement": "x" * 18},
        {"span": (10, 17), "new_span": (21, 39), "replacement": "x" * 18},
    ]]  # fmt: skip
    expansion = reported_expansion({"text_replacement_offsets": report}, 2, "P")
    assert expansion is not None
    assert expansion.inserted == ((2, 20), (21, 39))
    assert [expansion.offset(at) for at in (0, 2, 9, 10, 17, 20)] == [0, 2, 20, 21, 39, 42]
    assert reported_expansion({}, 2, "P") is None
    with pytest.raises(SampleError, match="expanded 2 placeholders for 1 images"):
        reported_expansion({"text_replacement_offsets": report}, 1, "P")


def test_a_report_of_places_behind_a_bos_that_the_processor_wrote_is_of_the_rendered_text_again() -> None:
    report = [{"span": (5, 8), "new_span": (5, 9), "replacement": "####"}]
    processed = Processed(
        output={"text_replacement_offsets": [report]}, given="<s>a ####b", processor=object(), image_token="<i>"
    )
    expansion = processed.expansion("a <i>b", 1, [])
    assert "<s>a ####b"[slice(*expansion.inserted[0])] == "####"
    assert ["<s>a ####b"[expansion.offset(at)] for at in (0, 5)] == ["a", "b"]
