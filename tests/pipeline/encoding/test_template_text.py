"""Chat templates that ask for the date get one, which is part of the measurement."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from annotated_data import annotate
from cal_pipeline.encoding import chat
from cal_pipeline.encoding.chat import ChatTemplate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import label_spec, rebuild_encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.plan import make_plan
from cal_schemas.errors import SampleError
from cal_schemas.spec import MeasurementSpec
from cal_trainer.data.alignment import RowEncoder
from cal_trainer.run.resuming import DATE_NAME, run_state, saved_settings, write_state
from conftest import Family
from examples_of import conversation, measurement_spec
from template_only import TemplateOnly
from tiny_data import write_llava_json

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}\n" + PLAIN
SECONDS = "{{ strftime_now('%M %S') }}" + PLAIN
TURNS = conversation("?", "A cat.").messages or ()


def test_a_template_that_asks_for_the_date_gets_midnight_of_the_one_it_is_given_and_today_is_the_default() -> None:
    template = ChatTemplate(TemplateOnly(DATED), ["</s>"], "2020-02-29")
    assert template.render(TURNS).text.startswith("29 Feb 2020 00:00:00\n")
    assert ChatTemplate(TemplateOnly(DATED), ["</s>"]).date == chat.today()
    assert ChatTemplate(TemplateOnly(SECONDS), ["</s>"]).render(TURNS).text.startswith("00 00user")


@pytest.mark.parametrize("source", [PLAIN, "{# strftime_now #}" + PLAIN, "{% if false %}" + DATED + "{% endif %}x"])
def test_a_template_that_never_asks_has_no_date(source: str) -> None:
    assert ChatTemplate(TemplateOnly(source), ["</s>"], "2020-02-29").date is None


@pytest.mark.parametrize("when", ["tools", "messages[0].role == 'system'", "messages | length > 3"])
def test_asking_in_some_conversations_only_is_found_out(when: str) -> None:
    source = f"{{% if {when} %}}{{{{ strftime_now('%Y') }}}}{{% endif %}}" + PLAIN
    assert ChatTemplate(TemplateOnly(source), ["</s>"]).date is not None


def test_asking_where_nobody_looked_is_an_encode_error() -> None:
    source = "{% if messages | length == 8 %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN
    template = ChatTemplate(TemplateOnly(source), ["</s>"])
    with pytest.raises(SampleError, match="reads the clock"):
        template.render(conversation(*"abcdefgh").messages or ())


def test_encoders_of_other_dates_and_other_renderings_of_the_process_do_not_meet() -> None:
    days = [f"20{number:02}-01-01" for number in range(10, 30)]
    templates = [ChatTemplate(TemplateOnly(DATED), ["</s>"], day) for day in days]
    with ThreadPoolExecutor(8) as pool:
        dates = list(pool.map(lambda template: template.render(TURNS).text[7:11], templates * 20))
    assert dates == [day[:4] for day in days] * 20
    (text,), _ = render_jinja_template([[{"role": "user", "content": []}]], chat_template=DATED)
    assert text[7:11] == chat.today()[:4]


@pytest.fixture
def dated(llava: Family, tmp_path: Path) -> Path:
    shutil.copytree(llava.directory, tmp_path / "dated")
    (tmp_path / "dated" / "chat_template.jinja").write_text(DATED)
    return tmp_path / "dated"


def test_the_date_is_part_of_the_fingerprint_only_where_the_template_reads_it(dated: Path, llava: Family) -> None:
    processor = load_processor(dated)
    specs = [measurement_spec(label=label_spec(Encoder(processor, date=day))) for day in ("2020-01-01", "2020-01-02")]
    assert specs[0].fingerprint() != specs[1].fingerprint()
    assert [name for name, *_ in specs[0].differences(specs[1])] == ["label.date"]
    assert MeasurementSpec.from_json(specs[0].to_json()) == specs[0]
    assert rebuild_encoder(specs[0], dated).date == "2020-01-01"
    assert '"date"' not in measurement_spec(label=label_spec(llava.encoder)).to_json()


def test_a_run_goes_on_with_the_date_that_its_output_was_begun_with(
    dated: Path, llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, folder = write_llava_json(tmp_path / "data", 4)
    config = PrecomputeConfig(
        model_name_or_path=str(dated), data_path=[str(source)], image_folder=[str(folder)], rows_per_shard=2,
        output_dir=str(tmp_path / "out"), dry_run=True, gpus_per_worker=0, dtype="float32", carry="images",
    )  # fmt: skip
    caplog.set_level("INFO")
    monkeypatch.setattr(chat, "today", lambda: "2020-01-01")
    begun = make_plan(config)
    assert begun.settings.spec.label.date == "2020-01-01"
    assert caplog.text.count("reads the clock: in every row it is 2020-01-01") == 1
    spec = begun.settings.spec
    encoder = rebuild_encoder(spec, dated)
    annotate(tmp_path / "out", begun.todo[:1], encoder, llava.model, **{
        name: getattr(spec, name) for name in ("model_id", "weights_digest", "reference_saw_data")
    })  # fmt: skip
    monkeypatch.setattr(chat, "today", lambda: "2020-01-02")
    again = make_plan(config)
    assert again.settings.spec == spec
    assert [len(again.progress.done), len(again.todo)] == [1, 1]


def test_training_reads_the_date_of_the_measurement(dated: Path, llava: Family, tmp_path: Path) -> None:
    processor = load_processor(dated)
    measured = Encoder(processor, date="2020-01-01")
    spec = measurement_spec(label=label_spec(measured))
    student = RowEncoder(Encoder(processor, date="2021-01-01"), spec)
    assert student.encoder.date == "2020-01-01"
    sample = conversation("?", "A cat.")
    assert student.encoder(sample, []).labels.equal(measured(sample, []).labels)


def test_a_resumed_training_reads_the_date_that_its_checkpoint_was_saved_with(tmp_path: Path) -> None:
    write_state(tmp_path, run_state(settings={"date that the template reads": "2020-01-01"}, data={}, exact=False))
    assert saved_settings(tmp_path)[DATE_NAME] == "2020-01-01"
    assert saved_settings(tmp_path / "none") == {}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_asking_by_the_number_of_answers_is_found_out(count: int) -> None:
    answers = "messages | selectattr('role', 'equalto', 'assistant') | list | length"
    source = f"{{% if {answers} == {count} %}}{{{{ strftime_now('%Y') }}}}{{% endif %}}" + PLAIN
    assert ChatTemplate(TemplateOnly(source), ["</s>"]).date is not None
