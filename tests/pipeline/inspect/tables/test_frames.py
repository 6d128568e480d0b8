from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cal_pipeline.inspect import load_annotated, sample_frame, token_frame
from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_pipeline.inspect.tables.token_text import Pieces, tokenizer_digest
from cal_schemas.annotated import template_inputs
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.objective.weights import token_weights
from inspect_data import Directories, write

NAN = float("nan")


def frame_of(*rows: tuple[list[int], list[float]], **columns: Any) -> pd.DataFrame:
    """Rows of (label_positions, delta_logits); label ids count up from 1."""
    return pd.DataFrame(
        {
            "sample_id": [f"s{number}" for number in range(len(rows))],
            "label_ids": [np.arange(1, len(positions) + 1, dtype=np.int32) for positions, _ in rows],
            "label_positions": [np.array(positions, np.int32) for positions, _ in rows],
            "delta_logits": [np.array(deltas, np.float32) for _, deltas in rows],
            **columns,
        }
    )


ROWS = st.lists(
    st.lists(
        st.tuples(
            st.integers(1, 3),  # how far the next supervised token is away
            st.one_of(st.floats(-20, 20, width=32), st.just(NAN)),
        ),
        max_size=12,
    ),
    max_size=5,
)


@settings(deadline=None)
@given(ROWS, st.sampled_from([(1.0, 5.0), (0.0, 3.5), (2.0, 2.0), (0.5, float("inf"))]), st.sampled_from([1, 3, 5, 31]),
       st.sampled_from(["span", "joined"]))  # fmt: skip
def test_weights_are_the_trainers_to_the_bit(
    rows: list[list[tuple[int, float]]], bounds: tuple[float, float], window: int, pool: Any
) -> None:
    options: dict[str, Any] = {"alpha": bounds[0], "beta": bounds[1], "window": window, "pool": pool}
    pairs = [(np.cumsum([step for step, _ in row]).tolist(), [delta for _, delta in row]) for row in rows]
    flat = FlatTokens.of(frame_of(*pairs))
    expected = []
    for positions, deltas in pairs:
        length = (positions[-1] if positions else 0) + 3
        labels = torch.full((1, length), IGNORE_INDEX)
        scattered = torch.full((1, length), NAN)
        labels[0, positions] = 1
        scattered[0, positions] = torch.tensor(deltas)
        expected += token_weights(scattered, labels, **options)[0, positions].tolist()
    np.testing.assert_array_equal(flat.weights(**options), np.array(expected, np.float32))


def test_a_row_per_supervised_token_of_the_rows_that_are_ok(directories: Directories) -> None:
    frame = load_annotated(directories.normal)
    tokens = token_frame(frame, directories.family.directory)
    ok = frame[frame["status"] == "ok"]
    assert len(tokens) == ok["label_ids"].map(len).sum() > 200
    assert set(tokens["row"]) == set(ok.index)
    by_row = dict(iter(tokens.groupby("row")))
    for row, values in ok.iterrows():
        own = by_row[row]
        assert own["token_id"].tolist() == values["label_ids"].tolist()
        assert own["position"].tolist() == values["label_positions"].tolist()
        np.testing.assert_array_equal(own["delta"].to_numpy(), values["delta_logits"])
        assert set(own["sample_id"]) == {values["sample_id"]}
        answers = [turn["content"] for turn in values["messages"] if turn["role"] == "assistant"]
        for number, answer in enumerate(answers, start=1):
            assert "".join(own["token"][own["turn"] == number]).strip() == answer.lstrip() + "</s>"
        assert own["turn"].max() == len(answers)
    assert tokens["delta"].dtype == tokens["weight"].dtype == np.float32
    assert token_frame(frame.iloc[:0], directories.family.directory).columns.tolist() == tokens.columns.tolist()


def test_frames_read_by_pandas_itself_give_the_same_tokens(directories: Directories) -> None:
    ours = token_frame(load_annotated(directories.normal), directories.family.directory)
    for backend in ("numpy_nullable", "pyarrow"):
        frame = pd.read_parquet(directories.normal, dtype_backend=backend)  # type: ignore[call-overload]
        theirs = token_frame(frame, directories.family.encoder.processor)
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_categorical=False)


def test_a_tokenizer_of_another_digest_is_refused_whatever_it_is_given_as(
    directories: Directories, tmp_path: Path
) -> None:
    right = Tokenizer.from_file(str(directories.family.directory / "tokenizer.json"))
    other = Tokenizer.from_file(str(directories.family.directory / "tokenizer.json"))
    other.add_tokens(["unheard"])
    other.save(str(tmp_path / "tokenizer.json"))
    frame = load_annotated(directories.normal, columns=["sample_id", "label_ids", "label_positions", "delta_logits"])
    digests = [tokenizer_digest(tokenizer) for tokenizer in (right, other)]
    for part in (frame, frame[frame["sample_id"] == "id-0"], frame.reset_index(drop=True)):
        assert len(token_frame(part, right))
        for wrong in (other, tmp_path / "tokenizer.json", str(tmp_path / "tokenizer.json"), Pieces(other)):
            with pytest.raises(ConfigError, match=f"digest {digests[0]} there, {digests[1]} here") as refused:
                token_frame(part, wrong)
            assert "tiny was measured with" in str(refused.value)


def test_columns_are_read_as_asked_for_and_images_only_by_name(directories: Directories) -> None:
    assert load_annotated(directories.normal, columns=["status", "sample_id"]).columns.tolist() == [
        "status",
        "sample_id",
    ]
    images = load_annotated(directories.normal)["images"]
    assert {tuple(image) for row in images for image in row} == {("path",)}
    whole = load_annotated(directories.normal, columns=["images"], filter="sample_id == 'id-0'")["images"]
    assert whole[0][0]["bytes"].startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"no columns \['delta'\].*delta_logits"):
        load_annotated(directories.normal, columns=["delta"])


def test_filters_see_stored_columns_and_those_of_the_sample_frame(directories: Directories) -> None:
    frame = load_annotated(directories.normal)
    samples = sample_frame(frame)
    wanted = (samples["status"] == "ok") & (samples["mean_delta"] < 0) & (samples["turns"] == 1)
    assert 0 < wanted.sum() < len(frame)
    found = load_annotated(
        directories.normal, columns=["sample_key"], filter="status == 'ok' and mean_delta < 0 and turns == 1"
    )
    assert found["sample_key"].tolist() == frame.loc[wanted, "sample_key"].tolist()
    by_arrow = load_annotated(directories.normal, filter=pc.field("num_tokens") > 60)
    assert by_arrow["sample_key"].tolist() == frame.loc[frame["num_tokens"] > 60, "sample_key"].tolist()
    assert len(by_arrow) < len(frame)
    assert not len(load_annotated(directories.normal, filter="tokens > 1000"))


def test_sample_frame_by_hand() -> None:
    frame = frame_of(
        ([5, 6, 9], [-2.0, 3.0, 8.0]), ([], []), ([1, 2], [NAN, NAN]), ([1], [0.5]), score=[1.5, 2.5, 3.5, 4.5]
    )
    samples = sample_frame(frame, alpha=1.0, beta=5.0, window=1)
    assert samples["tokens"].tolist() == [3, 0, 2, 1]
    assert samples["undefined"].tolist() == [0, 0, 2, 0]
    assert samples["turns"].tolist() == [2, 0, 1, 1]
    np.testing.assert_allclose(samples["mean_delta"], [3.0, NAN, NAN, 0.5])
    np.testing.assert_allclose(samples["min_delta"], [-2.0, NAN, NAN, 0.5])
    np.testing.assert_allclose(samples["max_delta"], [8.0, NAN, NAN, 0.5])
    np.testing.assert_allclose(samples["share_negative"], [1 / 3, NAN, NAN, 0.0])
    np.testing.assert_allclose(samples["share_below_alpha"], [1 / 3, NAN, NAN, 1.0])
    np.testing.assert_allclose(samples["share_above_beta"], [1 / 3, NAN, NAN, 0.0])
    np.testing.assert_allclose(samples["mean_weight"], [3.0, NAN, NAN, 1.0])
    np.testing.assert_allclose(samples["visual_dependence"], [(0 + 0.5 + 1) / 3, NAN, NAN, 0.0])
    assert samples["score"].tolist() == [1.5, 2.5, 3.5, 4.5]


@pytest.mark.parametrize("wrong", [{"pool": "Span"}, {"pool": "spam"}, {"alpha": "q0.5"}, {"window": "3"}])
def test_a_slip_in_the_weighting_is_never_taken_for_another_one(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    frame = frame_of(([5, 6], [1.0, 2.0]), ([8], [3.0]))
    spelled = Pieces(Tokenizer(WordLevel({"a": 1, "b": 2}, unk_token="a")))
    for use in (partial(sample_frame, frame), partial(token_frame, frame, spelled)):
        assert len(use())
        with pytest.raises(ConfigError, match=f"^{name} must be .*got {next(iter(wrong.values()))!r}"):
            use(**wrong)


@pytest.mark.parametrize(
    ("answers", "positions", "expected"),
    [
        # The second answer shows an image between its words; the third one's end token stands alone behind one.
        (["Yes.", "Here <image> and there."], [1, 2, 5, 6, 9], [1, 1, 2, 2, 2]),
        (["Look <image>", "No."], [1, 2, 5, 8], [1, 1, 1, 2]),
        (["Yes.", "No."], [1, 2, 5], [1, 1, 2]),
        (["a <image> b <image> c <image> d"], [1, 3, 9], [1, 2, 3]),  # cannot be brought together: spans count
    ],
)
def test_spans_around_images_inside_an_answer_are_one_turn(
    answers: list[str], positions: list[int], expected: list[int]
) -> None:
    messages = [turn for answer in answers for turn in ({"role": "user", "content": "?"},
                {"role": "assistant", "content": answer})]  # fmt: skip
    flat = FlatTokens.of(frame_of((positions, [0.0] * len(positions))))
    assert flat.turns(irregular_answers(pd.DataFrame({"messages": [messages]}))).tolist() == expected
    column = pa.chunked_array(
        [[None], [messages]], pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    )
    assert list(irregular_answers(pa.table({"messages": column}))) == (
        [1] if any("<image>" in answer for answer in answers) else []
    )


@pytest.mark.parametrize(
    ("answers", "unlearned", "positions", "expected"),
    [
        (["Yes.", "No.", "Maybe."], [0], [1, 2, 5], [2, 2, 3]),
        (["Yes.", "No.", "Maybe."], [0, 1], [1, 2], [3, 3]),
        (["Yes.", "No.", "Maybe."], [1], [1, 2], [1, 1]),  # the end was cut off
        (["Yes.", "Here <image> and there.", "No."], [0], [1, 3, 5], [2, 2, 3]),
        (["Here <image> and there.", "No."], [0], [1, 3], [2, 3]),  # more spans than answers: counted on
    ],
)
def test_answers_that_are_not_learned_are_counted(
    answers: list[str], unlearned: list[int], positions: list[int], expected: list[int]
) -> None:
    turns = [
        Turn(role=role, content=content, supervised=role == "user" or number not in unlearned)
        for number, answer in enumerate(answers)
        for role, content in (("user", "?"), ("assistant", answer))
    ]
    sample = Sample(sample_id="s", images=(), messages=tuple(turns))
    table = pa.table({
        "messages": [None, [{"role": turn.role, "content": turn.content} for turn in turns]],
        "template_inputs": [None, template_inputs(sample)],
    })  # fmt: skip
    flat = FlatTokens.of(frame_of(([], []), (positions, [0.0] * len(positions))))
    for columns in (table, table.to_batches()[0], table.to_pandas(), table.to_pandas(types_mapper=pd.ArrowDtype)):
        assert flat.turns(irregular_answers(columns)).tolist() == expected
    frame = frame_of(
        ([], []), (positions, [0.0] * len(positions)), **{n: table[n].to_pandas() for n in table.column_names}
    )
    assert sample_frame(frame)["turns"].tolist() == [0, len(set(expected))]


def test_half_precision_deltas_are_read_as_well(directories: Directories, tmp_path: Path) -> None:
    table = pq.read_table(min(directories.normal.glob("*.parquet")))
    at = table.schema.get_field_index("delta_logits")
    halves = table.column(at).cast(pa.list_(pa.float16()))
    table = table.set_column(at, "delta_logits", halves)
    pq.write_table(table, tmp_path / "half.parquet")
    tokens = token_frame(load_annotated(tmp_path), directories.family.directory)
    assert tokens["delta"].dtype == np.float32
    assert tokens["delta"].notna().any()


def test_undefined_deltas_are_nan_and_weigh_alpha(directories: Directories, tmp_path: Path) -> None:
    table = pq.read_table(min(directories.normal.glob("*.parquet")))
    at = table.schema.get_field_index("delta_logits")
    rows = [[None, *row[1:]] if row else row for row in table.column(at).to_pylist()]
    write(
        tmp_path / "a.parquet",
        table.set_column(at, table.schema.field(at), pa.array(rows, table.schema.field(at).type)),
    )
    tokens = token_frame(load_annotated(tmp_path), directories.family.directory, alpha=1.5)
    first = tokens.groupby("row").first()
    assert first["weight"].eq(1.5).all()
    assert (
        tokens["delta"].isna().sum()
        == tokens["row"].nunique()
        == sample_frame(load_annotated(tmp_path))["undefined"].sum()
    )


def test_duckdb_and_polars_read_the_same_columns(directories: Directories) -> None:
    frame = load_annotated(directories.normal)
    pattern = f"{directories.normal}/*.parquet"
    by_duckdb = duckdb.sql(
        "select sample_id, unnest(label_ids) as token_id, unnest(delta_logits) as delta "
        f"from '{pattern}' where status = 'ok'"
    ).fetchall()
    by_polars = (
        pl.read_parquet(pattern, columns=["sample_id", "status", "label_ids", "delta_logits"])
        .filter(pl.col("status") == "ok")
        .select("sample_id", "label_ids", "delta_logits")
        .explode("label_ids", "delta_logits")
        .rows()
    )
    tokens = token_frame(frame, directories.family.directory)
    ours = list(zip(tokens["sample_id"], tokens["token_id"], tokens["delta"], strict=True))
    assert by_duckdb == ours == by_polars


def test_frames_that_are_none_are_refused(directories: Directories) -> None:
    with pytest.raises(ConfigError, match="lacks the columns"):
        sample_frame(pd.DataFrame({"sample_id": ["a"]}))
    with pytest.raises(ConfigError, match="released"):
        token_frame(load_annotated(directories.normal), directories.family.directory, pool="released")
    with pytest.raises(FormatError, match="row 0 has 2 label_ids"):
        sample_frame(frame_of(([1, 2], [0.5])))


def test_what_is_no_frame_path_or_filter_is_refused_by_its_type(directories: Directories) -> None:
    frame: Any = load_annotated(directories.normal)
    for use in (token_frame, sample_frame):
        for part in (frame.loc[0], frame["delta_logits"]):
            with pytest.raises(
                ConfigError, match=r"^a pandas DataFrame is needed, such as frame.loc.* type AnnotatedRow$"
            ):
                use(part)
    assert len(sample_frame(frame.loc[[0]])) == 1
    samples: Any = sample_frame(frame)
    with pytest.raises(ConfigError, match="lacks the columns"):  # Before a tokenizer is asked for.
        token_frame(samples)
    for path, kind in ((frame, "AnnotatedFrame"), (None, "NoneType")):
        with pytest.raises(
            ConfigError, match=f'^load_annotated takes a path, such as "annotated/", not .* type {kind}$'
        ):
            load_annotated(path)
    with pytest.raises(ConfigError, match=r"^filter= takes a condition, .* type Series; a mask .*: frame\[mask\]$"):
        load_annotated(directories.normal, filter=samples["mean_delta"] < 1)


def test_an_answer_that_only_calls_a_tool_is_counted() -> None:
    said = [("user", "?", {}), ("assistant", "", {"tool_calls": [{"function": {"name": "look"}}]}), ("tool", "42", {}),
            ("assistant", "A cat.", {})]  # fmt: skip
    turns = [Turn(role=role, content=content, extra=extra) for role, content, extra in said]
    table = pa.table({
        "messages": [[{"role": turn.role, "content": turn.content} for turn in turns]],
        "template_inputs": [template_inputs(Sample(sample_id="s", images=(), messages=tuple(turns)))],
    })  # fmt: skip
    for positions, expected in (([1, 2, 9], [1, 1, 2]), ([1, 2], [1, 1])):
        flat = FlatTokens.of(frame_of((positions, [0.0] * len(positions))))
        assert flat.turns(irregular_answers(table)).tolist() == expected
