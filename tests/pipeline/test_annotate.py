import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cal_pipeline import annotate
from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding import prefetch
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring import contrast
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import annotated_schema
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.spec import MeasurementSpec
from cal_schemas.token_columns import EXTRA_COLUMNS
from conftest import Family
from examples_of import measurement_spec
from tiny_data import BAD_ROWS, MAX_IMAGE_PIXELS, llava_rows, write_llava_json, write_parquet


@dataclass(frozen=True, slots=True)
class Run:
    """annotate_shard with everything but what the test is about filled in."""

    family: Family
    output: Path

    def __call__(
        self,
        shard: Shard,
        *,
        model: Any = None,
        redo: frozenset[str] = frozenset(),
        spec: MeasurementSpec | None = None,
        **options: Any,
    ) -> tuple[list[dict[str, Any]], ShardReport]:
        carry = options.pop("carry", "paths")
        extra = options.get("extra_columns", ())
        schema = annotated_schema(carry=carry, extra_columns=extra, pass_through=pass_through_fields([shard]))
        values = {"tokens_per_batch": 256, "max_image_pixels": MAX_IMAGE_PIXELS, "schema": schema, "carry": carry}
        store = LocalStore(output_dir=self.output)
        store.prepare()
        report = annotate_shard(
            shard, encoder=self.family.encoder, model=model or self.family.model, store=store,
            spec=spec or measurement_spec(), options=AnnotateOptions(**{**values, **options}), redo=redo,
        )  # fmt: skip
        assert list((self.output / ".cal" / "staging").iterdir()) == []
        return pq.read_table(store.path(shard.name)).to_pylist(), report


@pytest.fixture
def run(llava: Family, tmp_path: Path) -> Run:
    return Run(llava, tmp_path / "out")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    data, images = write_llava_json(tmp_path_factory.mktemp("data"))
    return plan_shards([str(data)], [str(images)])[0]


def test_every_row_keeps_its_place_and_bad_ones_say_why(run: Run, shard: Shard) -> None:
    rows, report = run(shard)
    source = json.loads(Path(shard.source.uri).read_text())
    assert [row["sample_id"] for row in rows] == [str(row["id"]) for row in source]
    for number, row in enumerate(rows):
        status, reason = BAD_ROWS.get(number, ("ok", None))
        assert row["status"] == status, (number, row["error"])
        assert (row["error"] is None) if reason is None else (reason in row["error"])
        assert (len(row["label_ids"]) > 0) == (status == "ok")
        assert len(row["label_ids"]) == len(row["label_positions"]) == len(row["delta_logits"])
        assert None not in row["delta_logits"]
    assert report.rows == len(rows)
    assert report.statuses == {"ok": 32, "image_error": 5, "no_supervised_tokens": 1, "encode_error": 2}
    assert report.label_tokens == sum(len(row["label_ids"]) for row in rows)
    assert report.committed


def test_label_ids_and_positions_decode_to_the_assistant_s_words(run: Run, shard: Shard) -> None:
    rows, _ = run(shard)
    tokenizer = run.family.encoder.processor.tokenizer
    assert tokenizer.decode(rows[0]["label_ids"]) == " A red cat sits on the table. </s> On the left.</s>"
    assert rows[0]["label_positions"] == sorted(set(rows[0]["label_positions"]))
    assert rows[0]["num_tokens"] > max(rows[0]["label_positions"])


def test_text_only_rows_have_delta_zero_and_cost_no_pass(run: Run, tmp_path: Path) -> None:
    rows = [row for row in llava_rows(tmp_path / "i", 30) if "image" not in row]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = SmallMemory(run.family.model, limit=0)
    measured, report = run(plan_shards([str(tmp_path / "d.jsonl")])[0], model=model)
    assert model.refused == 0
    assert {delta for row in measured for delta in row["delta_logits"]} == {0.0}
    assert report.statuses == {"ok": 2}
    assert report.image_label_tokens == 0


def test_deltas_do_not_depend_on_threads_or_batch_size(run: Run, shard: Shard, tmp_path: Path) -> None:
    rows, _ = run(shard)
    other, _ = replace(run, output=tmp_path / "b")(shard, encode_threads=1)
    assert other == rows
    small, _ = replace(run, output=tmp_path / "c")(shard, tokens_per_batch=1)
    for one, two in zip(rows, small, strict=True):
        np.testing.assert_allclose(one["delta_logits"], two["delta_logits"], atol=1e-4)


def test_columns_are_those_of_masked_padding_and_of_one_window_after_the_other(
    run: Run, shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = run(shard)
    monkeypatch.setattr(annotate, "one_ahead", lambda windows: windows)
    monkeypatch.setattr(contrast, "without_padding_mask", lambda model, inputs: inputs)
    plain, _ = replace(run, output=tmp_path / "plain")(shard, encode_threads=1)
    for one, two in zip(rows, plain, strict=True):
        assert [one[name] for name in one if name != "delta_logits"] == [
            two[name] for name in two if name != "delta_logits"
        ]
        np.testing.assert_allclose(one["delta_logits"], two["delta_logits"], atol=1e-5)


def test_windows_do_not_change_the_result(
    run: Run, shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = run(shard)
    monkeypatch.setattr(prefetch, "_WINDOW_ROWS", 3)
    small, _ = replace(run, output=tmp_path / "b")(shard)
    assert [row["status"] for row in small] == [row["status"] for row in rows]
    for one, two in zip(rows, small, strict=True):
        np.testing.assert_allclose(one["delta_logits"], two["delta_logits"], atol=1e-4)


def test_stored_logits_subtract_to_the_delta(run: Run, shard: Shard) -> None:
    rows, _ = run(shard, extra_columns=tuple(EXTRA_COLUMNS))
    for row in rows:
        with_image, without = (np.array(row[f"logits_{name}_image"], np.float32) for name in ("with", "without"))
        np.testing.assert_array_equal(with_image - without, np.array(row["delta_logits"], np.float32))
        for name in ("with", "without"):
            logprobs = np.array(row[f"logprobs_{name}_image"], np.float32)
            assert len(logprobs) == len(row["label_ids"])
            assert bool((logprobs < 0).all())
    text_only = rows[23]
    assert text_only["logits_with_image"] == text_only["logits_without_image"] != [0.0] * len(text_only["label_ids"])
    for kind in ("logprobs", "entropy", "rank"):
        one, other = (text_only[name] for name in EXTRA_COLUMNS[kind])
        assert one == other
    for name in EXTRA_COLUMNS["kl"]:
        assert set(text_only[name]) == {0.0}
        assert any(max(row[name], default=0) > 1e-4 for row in rows)


def test_extra_columns_do_not_change_the_deltas(run: Run, shard: Shard, tmp_path: Path) -> None:
    plain, _ = run(shard)
    for number, extra in enumerate([(kind,) for kind in EXTRA_COLUMNS]):
        rows, _ = replace(run, output=tmp_path / str(number))(shard, extra_columns=extra)
        assert [row["delta_logits"] for row in rows] == [row["delta_logits"] for row in plain]
        assert [name for name in rows[0] if name not in plain[0]] == list(EXTRA_COLUMNS[extra[0]])


def test_carry_images_embeds_files_and_keeps_the_key_of_the_source(run: Run, shard: Shard, tmp_path: Path) -> None:
    by_path, _ = run(shard)
    embedded, _ = replace(run, output=tmp_path / "b")(shard, carry="images")
    sidecar, _ = replace(run, output=tmp_path / "c")(shard, carry="none")
    assert [row["sample_key"] for row in by_path] == [row["sample_key"] for row in embedded]
    assert [row["sample_key"] for row in by_path] == [row["sample_key"] for row in sidecar]
    folder = Path(str(shard.source.image_folder))
    assert embedded[0]["images"] == [{"bytes": (folder / "0.png").read_bytes(), "path": "0.png"}]
    assert by_path[0]["images"] == [{"bytes": None, "path": "0.png"}]
    assert "images" not in sidecar[0]
    assert [row["delta_logits"] for row in sidecar] == [row["delta_logits"] for row in by_path]


def test_carry_embedded_copies_what_sources_embed_and_no_file(run: Run, shard: Shard, tmp_path: Path) -> None:
    by_path, _ = run(shard)
    rows, _ = replace(run, output=tmp_path / "b")(shard, carry="embedded")
    assert rows == by_path
    parquet = plan_shards([str(write_parquet(tmp_path / "p.parquet"))])[0]
    whole, _ = replace(run, output=tmp_path / "c")(parquet, carry="images")
    rows, _ = replace(run, output=tmp_path / "d")(parquet, carry="embedded")
    assert any(image["bytes"] for row in rows for image in row["images"])
    assert rows == whole
    redone, report = replace(run, output=tmp_path / "d")(parquet, carry="embedded", redo=frozenset({"encode_error"}))
    assert report.kept_rows > 0
    assert redone == whole


def test_a_parquet_source_keeps_its_images_and_its_own_columns(run: Run, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "p.parquet")
    rows, _ = run(plan_shards([str(source)])[0], carry="images")
    before = pq.read_table(source).to_pylist()
    assert [row["images"] for row in rows] == [row["images"] for row in before]
    assert [row["messages"] for row in rows] == [row["messages"] for row in before]
    assert [row["score"] for row in rows] == [row["score"] for row in before]
    assert [row["sample_id"] for row in rows] == [row["id"] for row in before]


def test_what_a_row_says_beside_its_turns_is_measured(run: Run, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "On the left."},
            {"role": "user", "content": "And what?"}, {"role": "assistant", "content": "A red cat."}]  # fmt: skip
    spoken = [{"role": "system", "content": "Say what you see."}, *talk]
    unlearned = [talk[0], {**talk[1], "loss": False}, *talk[2:]]
    rows = [{"messages": talk}, {"messages": talk, "system": "Say what you see.", "score": 3}, {"messages": spoken},
            {"messages": unlearned, "score": None}, {"messages": [*talk[:3], {**talk[3], "weight": 0.5}]}]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (plain, beside, turn, part, refused), report = run(plan_shards([str(tmp_path / "d.jsonl")])[0])
    assert [row["status"] for row in (plain, beside, turn, part)] == ["ok"] * 4
    same = ("sample_key", "messages", "label_ids", "label_positions", "delta_logits", "num_tokens", "template_inputs")
    assert [beside[name] for name in same] == [turn[name] for name in same]
    assert beside["num_tokens"] > plain["num_tokens"]
    kept = len(part["label_ids"])
    assert 0 < kept < len(plain["label_ids"])
    assert part["label_ids"] == plain["label_ids"][-kept:]
    assert part["label_positions"] == plain["label_positions"][-kept:]
    assert json.loads(part["template_inputs"]) == {"turns": [{}, {"supervised": False}, {}, {}]}
    assert plain["template_inputs"] is None
    assert (refused["status"], refused["error"][:25]) == ("encode_error", "turn 3 has 'weight' 0.5; ")
    assert report.unread == {"score": 1}


def test_text_that_is_no_utf8_is_measured_and_said(run: Run, tmp_path: Path) -> None:
    row = {"id": "x", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "bad \ud800 one"}]}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    rows, report = run(plan_shards([str(tmp_path / "d.json")])[0])
    assert rows[0]["status"] == "ok"
    assert rows[0]["messages"][1]["content"] == "bad \ufffd one"
    assert "U+FFFD in: turn 1" in rows[0]["error"]
    assert (report.noted, report.notes) == (1, [f"x: {rows[0]['error']}"])


def test_an_image_whose_white_is_in_doubt_is_measured_and_its_error_says_so_once(run: Run, tmp_path: Path) -> None:
    dark = np.linspace(0, 4095, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    turns = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "A cat. bad \ud800"}]
    rows = [{"id": "x", "image": ["dark.png", "dark.png"], "conversations": turns}]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    measured, report = run(plan_shards([str(tmp_path / "d.json")], [str(tmp_path)])[0])
    assert (measured[0]["status"], report.noted) == ("ok", 1)
    assert measured[0]["error"].startswith(
        "characters that are not UTF-8 were replaced by U+FFFD in: turn 1; an image of 16 bits"
    )
    assert measured[0]["error"].count("levels 0 to 15 of 255") == 1


def test_non_finite_logits_make_that_row_non_finite_and_no_other(run: Run, tmp_path: Path) -> None:
    rows = llava_rows(tmp_path / "i", 4)
    rows[2]["conversations"][1]["value"] = "A red dog."
    (tmp_path / "d.json").write_text(json.dumps(rows))
    model = load_reference(run.family.directory, dtype="float32")
    dog = run.family.encoder.processor.tokenizer(" dog", add_special_tokens=False)["input_ids"]
    cat = run.family.encoder.processor.tokenizer(" cat sits on the table.", add_special_tokens=False)["input_ids"]
    poisoned = next(token for token in dog if token not in cat)
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = torch.inf
    measured, report = run(plan_shards([str(tmp_path / "d.json")], [str(tmp_path / "i")])[0], model=model)
    assert [row["status"] for row in measured] == ["ok", "ok", "non_finite", "ok"]
    assert "supervised tokens have non-finite logits" in measured[2]["error"]
    assert report.statuses == {"ok": 3, "non_finite": 1}


class SmallMemory(torch.nn.Module):
    """The tiny LLaVA on a device where a pass over more than `limit` padded tokens does not fit."""

    def __init__(self, model: Any, limit: int) -> None:
        super().__init__()
        self.inner, self.limit, self.refused = model, limit, 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, **inputs: Any) -> Any:
        if inputs["input_ids"].numel() > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return self.inner(**inputs)


def test_out_of_memory_halves_the_batch_and_a_sample_that_never_fits_is_a_row(run: Run, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path, 12)
    shard = plan_shards([str(data)], [str(images)])[0]
    rows, _ = run(shard, tokens_per_batch=4096)
    longest = max(row["num_tokens"] for row in rows)
    model = SmallMemory(run.family.model, limit=longest - 1)
    small, report = replace(run, output=tmp_path / "b")(shard, model=model, tokens_per_batch=4096)
    assert model.refused > 1
    for one, two in zip(rows, small, strict=True):
        if one["num_tokens"] == longest:
            assert two["status"] == "out_of_memory"
            assert f"{longest} tokens do not fit" in two["error"]
        else:
            np.testing.assert_allclose(one["delta_logits"], two["delta_logits"], atol=1e-4)
    assert report.statuses["ok"] == sum(row["num_tokens"] < longest for row in rows)


def test_after_out_of_memory_later_batches_are_halved_untried_and_the_next_window_tries_the_whole_budget(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = llava_rows(tmp_path / "i", 3)[1:2] * 24
    (tmp_path / "d.json").write_text(json.dumps(rows))
    shard = plan_shards([str(tmp_path / "d.json")], [str(tmp_path / "i")])[0]
    calm, _ = run(shard, tokens_per_batch=4096)
    length = calm[0]["num_tokens"]
    monkeypatch.setattr(prefetch, "_WINDOW_ROWS", 12)
    # Batches of 4 rows where 3 fit: in each of two windows the first one fails, the other two are halved untried.
    model = SmallMemory(run.family.model, limit=3 * length)
    measured, report = replace(run, output=tmp_path / "b")(shard, model=model, tokens_per_batch=4 * length)
    assert model.refused == 2
    assert report.statuses == {"ok": 24}
    for one, two in zip(calm, measured, strict=True):
        np.testing.assert_allclose(one["delta_logits"], two["delta_logits"], atol=1e-4)


def test_redo_measures_the_named_statuses_again_and_keeps_the_rest(run: Run, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path)
    shard = plan_shards([str(data)], [str(images)])[0]
    rows, _ = run(shard)
    (images / "missing.png").write_bytes((images / "0.png").read_bytes())
    redone, report = run(shard, redo=frozenset({"image_error"}))
    assert report.kept_rows == 35
    assert redone[5]["status"] == "ok"
    assert len(redone[5]["delta_logits"]) > 0
    assert [row for n, row in enumerate(redone) if n != 5] == [row for n, row in enumerate(rows) if n != 5]


def test_redo_keeps_the_images_of_every_row_that_had_them(run: Run, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path)
    shard = plan_shards([str(data)], [str(images)])[0]
    rows, _ = run(shard, carry="images")
    assert rows[9]["status"] == "encode_error"
    assert rows[9]["images"][0]["bytes"]
    redone, _ = run(shard, carry="images", redo=frozenset({"image_error"}))
    assert redone == rows
    (images / "9.png").unlink()
    redone, _ = run(shard, carry="images", redo=frozenset({"image_error"}))
    assert redone == rows


def test_redo_keeps_the_images_that_were_measured_when_the_files_are_others_now(run: Run, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path)
    shard = plan_shards([str(data)], [str(images)])[0]
    rows, _ = run(shard, carry="images")
    (images / "1.png").write_bytes((images / "2.png").read_bytes())
    (images / "missing.png").write_bytes((images / "0.png").read_bytes())
    redone, report = run(shard, carry="images", redo=frozenset({"image_error"}))
    assert report.kept_rows == 35
    assert redone[5]["status"] == "ok"
    assert redone[5]["images"][0]["bytes"] == (images / "0.png").read_bytes()
    assert [row for n, row in enumerate(redone) if n != 5] == [row for n, row in enumerate(rows) if n != 5]


@pytest.mark.parametrize("carry", ["images", "paths", "none"])
def test_redo_refuses_a_source_whose_rows_are_others_although_its_size_and_time_are_not(
    run: Run, tmp_path: Path, carry: Any
) -> None:
    data, images = write_llava_json(tmp_path)
    (shard,) = plan_shards([str(data)], [str(images)])
    before, _ = run(shard, carry=carry)
    times = data.stat()
    data.write_text(data.read_text().replace("A red cat", "A dog red", 1))
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ShardError, match=r"data\.json: row 0 is not the row that was measured before"):
        run(shard, carry=carry, redo=frozenset({"image_error"}))
    assert pq.read_table(run.output / f"{shard.name}.parquet").to_pylist() == before


@pytest.mark.parametrize("carry", ["images", "paths", "none"])
def test_redo_keeps_carried_columns_and_counts_rows_as_before(run: Run, tmp_path: Path, carry: Any) -> None:
    source = write_parquet(tmp_path / "p.parquet", count=3)
    rows = pq.read_table(source).to_pylist()
    rows[1]["images"][0]["bytes"] = b"no image"
    clock = pa.array([1, None, 3], pa.time64("ns"))
    pq.write_table(pa.Table.from_pylist(rows).append_column("clock", clock), source)
    (shard,) = plan_shards([str(source)])
    _, first = run(shard, carry=carry)
    before = pq.read_table(run.output / "p.parquet")
    _, second = run(shard, carry=carry, redo=frozenset({"image_error"}))
    assert second.kept_rows == 2
    assert pq.read_table(run.output / "p.parquet").equals(before)
    assert before["clock"].combine_chunks().equals(clock)
    assert second.image_label_tokens == first.image_label_tokens > 0


def test_a_token_beyond_the_embedding_is_that_row_s_encode_error(run: Run, tmp_path: Path) -> None:
    rows = [row for row in llava_rows(tmp_path / "i", 4) if "image" in row]
    rows[1]["conversations"][1]["value"] = "A <extra> cat."
    (tmp_path / "d.json").write_text(json.dumps(rows))
    processor = load_processor(run.family.directory)
    processor.tokenizer.add_tokens(["<extra>"])
    other = replace(run, family=replace(run.family, encoder=Encoder(processor)))
    measured, _ = other(plan_shards([str(tmp_path / "d.json")], [str(tmp_path / "i")])[0])
    assert [row["status"] for row in measured] == ["ok", "encode_error", "ok"]
    assert "is beyond the model's" in measured[1]["error"]


def test_carried_columns_keep_types_that_python_would_round(run: Run, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "p.parquet", count=3)
    table = pq.read_table(source)
    clock = pa.array([1, None, 3], pa.time64("ns"))
    tags = pa.array([["a"], None, []], pa.list_(pa.string()))
    pq.write_table(table.append_column("clock", clock).append_column("tags", tags), source)
    run(plan_shards([str(source)])[0], carry="images")
    written = pq.read_table(run.output / "p.parquet")
    assert written["clock"].combine_chunks().equals(clock)
    assert written["tags"].combine_chunks().equals(tags)


def test_first_writer_wins(run: Run, shard: Shard) -> None:
    run(shard)
    before = (run.output / f"{shard.name}.parquet").read_bytes()
    _, report = run(shard, tokens_per_batch=512)
    assert not report.committed
    assert (run.output / f"{shard.name}.parquet").read_bytes() == before


def test_a_shard_that_another_driver_published_otherwise_is_refused_with_both_values(run: Run, shard: Shard) -> None:
    run(shard)
    before = (run.output / f"{shard.name}.parquet").read_bytes()
    for redo in (frozenset[str](), frozenset({"image_error"})):
        with pytest.raises(ConfigError, match=r"another measurement \(dtype: 'float32' there, 'float16' now\); choose"):
            run(shard, spec=measurement_spec(dtype="float16"), redo=redo)
        with pytest.raises(ConfigError, match="was written with --carry paths, this run has images"):
            run(shard, carry="images", redo=redo)
    assert (run.output / f"{shard.name}.parquet").read_bytes() == before


def test_what_takes_a_shard_s_name_while_it_is_measured_is_no_other_driver_s_shard(run: Run, shard: Shard) -> None:
    (run.output / f"{shard.name}.parquet").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is a directory, and the shard .* cannot be written: remove it"):
        run(shard)
    assert list((run.output / ".cal" / "staging").iterdir()) == []


def test_a_source_that_fails_half_way_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path)
    shard = plan_shards([str(data)], [str(images)])[0]
    cut = replace(shard, byte_stop=shard.byte_stop + 100)
    with pytest.raises(ShardError, match="changed after planning"):
        run(cut)
    assert list(run.output.glob("*.parquet")) == []
    assert list((run.output / ".cal" / "staging").iterdir()) == []


def test_report_counts_floor_and_ceiling_over_rows_with_images(run: Run, shard: Shard) -> None:
    rows, report = run(shard)
    deltas = [d for row in rows if row["status"] == "ok" and row["images"] for d in row["delta_logits"]]
    assert report.image_label_tokens == len(deltas)
    assert report.at_most_alpha == sum(delta <= 1 for delta in deltas)
    assert report.below_beta == sum(delta < 5 for delta in deltas)
