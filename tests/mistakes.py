"""Mistakes of a first hour, made for real: a world of wrong files, and command lines that name them.

    python tests/mistakes.py

makes each by a process of its own, as a user does, and writes docs/mistakes.md with what was said and how many seconds
of CPU it took. The page is compared with what is said now by tests/test_mistakes.py.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hub_server import HubServer
from tiny_data import llava_rows
from tiny_models import build_llava


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """What somebody did, the command line, and how it is done."""

    what: str
    line: str
    way_out: str


PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"
HEAD = """# Mistakes, and what they look like

Each line was made for real: a refusal is one line on standard error, exit code 2, with nothing started and nothing
written. Seconds are of CPU, from the command to its end; what takes five and more has imported torch and transformers
to ask the model. `model`, `data.json` and `images/` stand for yours, DIR for the folder they are in, and the Hub is a
server on loopback. The table is written by `python tests/mistakes.py`, and a test makes every mistake again.

| mistake | what is said | seconds | way out |
|---|---|---|---|
"""

MEASURE = "cal-precompute --model_name_or_path model --data_path data.json --image_folder images --output_dir out"
TRAIN = "cal-train --model_name_or_path model --data_path annotated --output_dir out --use_cpu"


def _measured(what: str, flags: str, way_out: str) -> Mistake:
    """A line of cal-precompute, in which these flags take the place of those of MEASURE."""
    given = _flags(MEASURE) | _flags(flags)
    line = " ".join(["cal-precompute", *(f"{name} {value}".strip() for name, value in given.items() if value != "NOT")])
    return Mistake(what=what, line=line, way_out=way_out)


def _flags(line: str) -> dict[str, str]:
    return {f"--{name}": value.strip() for name, _, value in (part.partition(" ") for part in line.split("--")[1:])}


MISTAKES = [
    _measured("a path that is not there", "--data_path data.jsn", "the name as `ls` shows it"),
    _measured("an empty folder", "--data_path empty", "the folder with the files"),
    _measured("a folder of images alone", "--data_path images", "a file that names them, or `metadata.jsonl` in it"),
    _measured("a CSV", "--data_path data.csv", "the line that the message gives"),
    _measured("a TSV", "--data_path data.tsv", "the same"),
    _measured("an Excel sheet", "--data_path data.xlsx", "the same"),
    _measured("a zip", "--data_path data.zip", "unpack it"),
    _measured("a video", "--data_path film.mp4", "images: frames of it"),
    _measured("an image in place of data", "--data_path images/0.png", "a file that names it"),
    _measured("a Parquet file without images", "--data_path texts.parquet", "name the column as the message says"),
    _measured("a Parquet file without messages", "--data_path pictures.parquet", "name the column as the message says"),
    _measured("JSON of other keys", "--data_path other.json", "keys of a layout in docs/data-format.md"),
    _measured("JSON that was cut", "--data_path cut.json", "fetch it again"),
    _measured("an empty JSON", "--data_path nothing.json", "data with rows"),
    _measured("`--image_folder` that is not there", "--image_folder image", "the folder's name"),
    _measured("`--image_folder` forgotten", "--image_folder NOT", "`--image_folder images`"),
    _measured("the wrong `--image_folder`", "--image_folder empty", "where the paths of the data begin"),
    _measured("a data set of the Hub that is not there", "--data_path nobody/nothing", "its name on the Hub"),
    _measured("a private data set without a token", "--data_path shop/private", "`HF_TOKEN`, or `hf auth login`"),
    _measured("a split that is not there", "--data_path shop/public:tset", "one that the message names"),
    _measured("a model that is not there", "--model_name_or_path modell", "the folder, or the id on the Hub"),
    _measured("a folder without a model", "--model_name_or_path images", "the folder with `config.json`"),
    _measured("a text-only model", "--model_name_or_path text_model", "a model that sees images"),
    _measured("a model without its processor", "--model_name_or_path bare_model", "the whole folder of the model"),
    _measured("a LoRA adapter in place of a model", "--model_name_or_path adapter", "merge it into its model first"),
    _measured("a mistyped flag", "--contrats drop", "the name that the message gives"),
    _measured("a mistyped dtype", "--dtype bf16", "a name of the list"),
    _measured("a number that is none", "--num_workers two", "`2`"),
    _measured("YAML that is none", "--config broken.yaml", "the line that the message names"),
    _measured("YAML with a mistyped flag", "--config mistyped.yaml", "the name that the message gives"),
    _measured("output inside the source", "--data_path shards --output_dir shards", "another folder"),
    _measured("output into a file", "--output_dir data.json", "a folder"),
    _measured("output of another run", "--output_dir annotated --max_length 512", "another folder, or the same flags"),
    _measured("a disk without space", "--output_dir full/out", "make room, then the same command"),
    _measured("more GPUs than there are", "--gpus_per_worker 1", "`--gpus_per_worker 0` measures on the CPU"),
    _measured("a Ray cluster that is not there", "--ray_address 127.0.0.1:1", "its address, or without the flag"),
    Mistake(what="training on raw data with cached deltas", line=TRAIN.replace("annotated", "data.json"),
            way_out="measure first, or `--delta_source online`"),
    Mistake(what="training without `--output_dir`", line=TRAIN.replace(" --output_dir out", ""),
            way_out="`--output_dir out`"),
    Mistake(what="training another model's data", line=TRAIN.replace("path model", "path other_model"),
            way_out="the reference's kin, or measure with this one"),
    Mistake(what="a sample that is not there", line="cal-inspect show annotated no-such-id",
            way_out="an id of the column `sample_id`"),
    Mistake(what="a condition that is none", line='cal-inspect filter annotated "mean_dleta > 1"',
            way_out="a column that the message names"),
    Mistake(what="looking at raw data", line="cal-inspect summary data.json", way_out="the output of cal-precompute"),
]  # fmt: skip


def make_world(folder: Path, hub: HubServer) -> None:
    """Everything that the lines name, but for `full`, which is a disk."""
    rows = llava_rows(folder / "images", 4)
    _write_files(folder, rows)
    build_llava(folder / "model")
    shutil.copytree(folder / "model", folder / "other_model")
    _change_tokenizer(folder / "other_model")
    _write_models(folder)
    shard = (folder / "shards" / "a.parquet").read_bytes()
    hub.commit("shop/public", {"data/train-00000-of-00001.parquet": shard})
    hub.commit("shop/private", {"data/train-00000-of-00001.parquet": shard})
    hub.repo("shop/private", private=True)
    _measure(folder)


def _write_files(folder: Path, rows: list[dict[str, object]]) -> None:
    (folder / "empty").mkdir()
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "cut.json").write_text(json.dumps(rows)[:-40])
    (folder / "nothing.json").write_text("[]")
    (folder / "other.json").write_text(json.dumps([{"picture": "0.png", "text": "A cat."}] * 3))
    for suffix, comma in ((".csv", ","), (".tsv", "\t")):
        (folder / f"data{suffix}").write_text(f"image{comma}caption\n0.png{comma}A cat.\n")
    (folder / "data.xlsx").write_bytes(b"PK\x03\x04")
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.write(folder / "data.json", "data.json")
    (folder / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom")
    (folder / "broken.yaml").write_text("data_path: [data.json\noutput_dir: out\n")
    (folder / "mistyped.yaml").write_text("output_dri: out\n")
    messages = [[{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]] * 2
    image = {"bytes": (folder / "images" / "0.png").read_bytes(), "path": None}
    (folder / "shards").mkdir()
    for path, columns in {
        "texts.parquet": {"caption": ["A cat."], "url": ["https://example.org/cat.png"]},
        "pictures.parquet": {"image": [image] * 2},
        "shards/a.parquet": {"images": [[image]] * 2, "messages": messages},
    }.items():
        pq.write_table(pa.table(columns), folder / path)


def _write_models(folder: Path) -> None:
    import transformers as hf

    text = hf.AutoTokenizer.from_pretrained(folder / "model")
    config = hf.LlamaConfig(vocab_size=len(text), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2)  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder / "text_model")
    text.save_pretrained(folder / "text_model")
    (folder / "bare_model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "model" / name, folder / "bare_model" / name)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "model", "peft_type": "LORA"}')


def _change_tokenizer(model: Path) -> None:
    """Makes another model's tokenizer of it: two words change places."""
    path = model / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    first, second = [word for word in vocabulary if word.isalpha()][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))


def _measure(folder: Path) -> None:
    """Makes `annotated`, of MEASURE, by a worker in this process."""
    from cal_pipeline.arguments import parse_config
    from cal_pipeline.cli import validate_paths
    from cal_pipeline.runtime.config import PrecomputeConfig
    from cal_pipeline.runtime.plan import make_plan
    from cal_pipeline.runtime.worker import Worker

    flags = _flags(MEASURE) | {"--output_dir": "annotated"}
    here = Path.cwd()
    os.chdir(folder)
    try:
        words = [word for pair in flags.items() for word in pair]
        config = parse_config(PrecomputeConfig, words, program="cal-precompute", description="")
        plan = make_plan(config, validate_paths(config))
        plan.settings.store.prepare()
        worker = Worker(plan.settings)
        for shard in plan.progress.pending:
            assert worker.run(shard).kind == "done"
    finally:
        os.chdir(here)


@contextmanager
def full_disk(folder: Path) -> Iterator[bool]:
    """A disk without a free byte there; whether it could be mounted, which takes root."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if mounted.returncode == 0:
        (folder / "taken").write_bytes(bytes(16 * 1024))
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


def as_on_the_page(said: str, folder: Path) -> str:
    """The last line of standard error, without what is of this machine, as a cell of a table."""
    line = next((line for line in reversed(said.splitlines()) if line.startswith("cal-")), said)
    line = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:PORT", line.replace(str(folder), "DIR"))
    return "`` " + re.sub(r"'[0-9a-f]{32}'", "'…'", line).replace("|", "\\|") + " ``"


def main() -> None:
    """Makes them all and writes the page."""
    rows = []
    with tempfile.TemporaryDirectory() as made, HubServer() as hub, full_disk(Path(made) / "full") as there_is_one:
        assert there_is_one, "a full disk takes root"
        folder = Path(made)
        make_world(folder, hub)
        for mistake in MISTAKES:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                shlex.split(mistake.line), cwd=folder, env={**os.environ, **hub.environment()}, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 2, (mistake, done.returncode, done.stderr)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            said = as_on_the_page(done.stderr, folder)
            rows.append(f"| {mistake.what} | {said} | {seconds:.1f} | {mistake.way_out} |")
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
