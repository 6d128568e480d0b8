import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.arguments import chosen, parse_config
from cal_pipeline.config_file import flags_of, read_values
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.sources.images import PILLOW_MAX_PIXELS
from cal_schemas.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """One flag of each kind."""

    count: int
    folder: Path = Path("here")
    rate: float = 0.5
    words: list[str] = field(default_factory=list)
    name: str | None = None
    saw: Literal["yes", "no", "unknown"] = "unknown"
    fast: bool = False
    safe: bool = True
    cap: int | None = 3
    extra: dict[str, Any] | str | None = None


def parse(*argv: str, yaml: str | None = None, to: Path | None = None) -> Flags:
    if yaml is not None:
        assert to is not None
        (to / "c.yaml").write_text(yaml, encoding="utf-8")
        argv = ("--config", str(to / "c.yaml"), *argv)
    return parse_config(Flags, argv, program="p", description="d")


def test_a_flag_has_its_type_and_the_others_their_defaults() -> None:
    assert parse("--count", "3") == Flags(count=3)
    argv = ["--count", "-3", "--folder", "a/b", "--rate=2e-5", "--words", "x", "y", "--name", "n", "--saw", "no"]
    assert parse(*argv) == Flags(count=-3, folder=Path("a/b"), rate=2e-5, words=["x", "y"], name="n", saw="no")


@pytest.mark.parametrize(
    ("argv", "fast", "safe"),
    [
        ([], False, True),
        (["--fast"], True, True),
        (["--fast", "true"], True, True),
        (["--fast=false"], False, True),
        (["--no_safe"], False, False),
        (["--safe", "no"], False, False),
        (["--no-safe", "--fast"], True, False),
    ],
)
def test_a_boolean_is_a_bare_flag_a_value_or_a_negation(argv: list[str], fast: bool, safe: bool) -> None:
    assert parse("--count", "1", *argv) == Flags(count=1, fast=fast, safe=safe)


def test_a_dash_for_an_underscore_is_the_same_flag() -> None:
    argv = ["--model-name-or-path", "m", "--output-dir", "o", "--data-path", "d"]
    assert parse_config(PrecomputeConfig, argv, program="p", description="d") == precompute()


def test_every_kind_of_value_comes_from_yaml_as_it_is_written(tmp_path: Path) -> None:
    yaml = "count: 3\nfolder: a/b\nrate: 2e-5\nwords: [x, y z]\nname: 0123\nsaw: no\nfast: true\nsafe: false\ncap: 7\n"
    assert parse(yaml=yaml, to=tmp_path) == Flags(
        count=3, folder=Path("a/b"), rate=2e-5, words=["x", "y z"], name="0123", saw="no", fast=True, safe=False, cap=7
    )


@pytest.mark.parametrize("written", ["1.10", "-x", "a=b", "2024-01-02", "'é: #'", "on"])
def test_text_in_yaml_is_not_interpreted(tmp_path: Path, written: str) -> None:
    assert parse(yaml=f"count: 1\nname: {written}", to=tmp_path).name == written.strip("'")


@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), count=st.integers(-99, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_quoted_text_in_yaml_is_that_text(tmp_path: Path, name: str, count: int) -> None:
    quoted = name.replace("'", "''")
    if name in ("~", "null", "Null", "NULL"):
        return
    assert parse(yaml=f"count: {count}\nname: '{quoted}'", to=tmp_path) == Flags(count=count, name=name)


@pytest.mark.parametrize("written", ["inf", ".inf", ".Inf", "+.inf"])
def test_infinity_is_written_as_yaml_or_as_the_flags_do(tmp_path: Path, written: str) -> None:
    assert parse(yaml=f"count: 1\nrate: {written}\nname: .inf", to=tmp_path) == Flags(
        count=1, rate=float("inf"), name=".inf"
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [("5e-4", 5e-4), (".5", 0.5), ("5.e-4", 5e-4), ("no", False), ("True", True), ("7", 7), (".inf", math.inf),
     ("~", None), ("2024-01-02", "2024-01-02"), ("a: b", "a: b"), ("NO_PREFETCH", "NO_PREFETCH")],
)  # fmt: skip
def test_a_value_of_a_nested_mapping_is_what_yaml_or_json_takes_it_for(
    tmp_path: Path, written: str, value: object
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"options: {{one: '{written}', more: ['{written}']}}")
    (spelled,) = flags_of(read_values(path), [], {"options": str})
    assert json.loads(spelled.removeprefix("--options=")) == {"one": value, "more": [value]}


@pytest.mark.parametrize("null", ["", "~", "null"])
def test_null_and_an_empty_list_in_yaml_are_the_default(tmp_path: Path, null: str) -> None:
    assert parse(yaml=f"count: 1\nname: {null}\ncap: {null}\nwords: []", to=tmp_path) == Flags(count=1)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("count: 1\nname: a\ncount: 2\n", "count is there twice, in lines 1 and 3"),
        ("count: 1\nextra:\n  a: 1\n  a: 2\n", "a is there twice, in lines 3 and 4"),
    ],
)
def test_a_key_that_yaml_has_twice_is_refused_with_both_lines(tmp_path: Path, yaml: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml)
    with pytest.raises(ConfigError, match=said):
        read_values(tmp_path / "c.yaml")


@pytest.mark.parametrize("yaml", ["", "# nothing\n", "{}"])
def test_an_empty_yaml_file_changes_nothing(tmp_path: Path, yaml: str) -> None:
    assert parse("--count", "1", yaml=yaml, to=tmp_path) == Flags(count=1)


def test_a_flag_overrides_the_file_wherever_it_stands(tmp_path: Path) -> None:
    yaml = "count: 1\nwords: [a, b]\nname: file\nfast: true\nrate: 0.1"
    typed = ["--words", "c", "--fast", "false", "--rate", "0.2"]
    expected = Flags(count=1, words=["c"], name="file", fast=False, rate=0.2)
    assert parse(*typed, yaml=yaml, to=tmp_path) == expected
    assert parse(*typed, "--config", str(tmp_path / "c.yaml")) == expected
    assert parse(*typed, f"--config={tmp_path / 'c.yaml'}") == expected


def test_one_value_for_a_list_flag_is_a_list_of_one(tmp_path: Path) -> None:
    assert parse(yaml="count: 1\nwords: -a b", to=tmp_path).words == ["-a b"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --count"),
        (["--count", "x"], "argument --count: invalid int value: 'x'"),
        (["--count", "2.5"], "argument --count: invalid int value: '2.5'"),
        (["--count"], "argument --count: expected one argument"),
        (["--count", "1", "--words"], "argument --words: expected at least one argument"),
        (["--count", "1", "--saw", "maybe"], "argument --saw: invalid choice: 'maybe'"),
        (["--count", "1", "--fast", "maybe"], "argument --fast: .*maybe"),
        (["--count", "1", "--rates", "2"], "unknown flag --rates; did you mean --rate?"),
        (["--count", "1", "--word-s=2"], "unknown flag --word-s; did you mean --words?"),
        (["--count", "1", "--split", "x"], "unknown flag --split: a data set"),
        (["--count", "1", "--zzz"], "unknown flag --zzz; --help-all lists them"),
        (["--coun", "1"], "unknown flag --coun; did you mean --count?"),
        (["--c", "1"], "unknown flag --c; did you mean --count or --cap or --config?"),
        (["--rate", "fast", "--folde", "x"], "unknown flag --folde; did you mean --folder?"),
        (["--count", "1", "--saw", "yess"], "invalid choice: 'yess'; did you mean yes? There are yes, no, unknown"),
        (["--count", "1", "--fold", "x"], "unknown flag --fold; did you mean --folder?"),
        (["-count", "1"], "unknown flag -count; did you mean --count?"),
        (["\N{EM DASH}count", "1"], "unknown flag \N{EM DASH}count; did you mean --count?"),
        (["--count", "1", "\N{EN DASH}rate", "2"], "unknown flag \N{EN DASH}rate; did you mean --rate?"),
        (["--rate", "-1", "--name", "-a b"], "the following arguments are required: --count (p --help tells more)"),
        (["--count", "1", "stray"], "unexpected argument 'stray': it belongs to no flag"),
        (["--config"], "argument --config: expected one argument"),
        (["--config", "/absent.yaml"], "--config /absent.yaml: No such file or directory"),
        (["--config", "/"], "--config /: Is a directory"),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_the_flag(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("count: x", "argument --count: invalid int value: 'x'"),
        ("count: [1, 2]", "unexpected argument '2': it belongs to no flag"),
        ("count: 1\nrates: 2", r"c\.yaml: unknown flag --rates; did you mean --rate\?"),
        ("count: 1\nconfig: c.yaml", r"c\.yaml: unknown flag --config; "),
        ("count: 1\nno_safe: true", r"c\.yaml: unknown flag --no_safe; "),
        ("count: {a: 1}", r"c\.yaml: count is a mapping or nested, expected a value or a list of values"),
        ("count: 1\nwords: [{a: 1}]", r"c\.yaml: words is a mapping or nested"),
        ("count: 1\nwords: [[a]]", r"c\.yaml: words is a mapping or nested"),
        ("- count", r"c\.yaml: expected `flag: value` lines, got a list"),
        ("count", r"c\.yaml: expected `flag: value` lines, got a str"),
        ("count: [1", r"c\.yaml is no YAML: .*line 1"),
        ("a: 1\n---\nb: 2", r"c\.yaml is no YAML: "),
        ("{[1]: 2}", r"c\.yaml is no YAML: "),
    ],
)
def test_a_wrong_yaml_file_is_one_line_that_names_the_file_or_the_flag(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse(yaml=yaml, to=tmp_path)
    assert "\n" not in str(error.value)


def test_a_yaml_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"c\.yaml is no YAML"):
        parse("--config", str(tmp_path / "c.yaml"))


def test_help_lists_every_flag_with_its_text_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_config(PrecomputeConfig, ["--help"], program="cal-precompute", description="d")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--rows_per_shard" in shown
    assert "--encode_threads" not in shown
    assert "reference model: a directory or a hub id" in shown
    assert "--config" in shown


def precompute(**changed: Any) -> PrecomputeConfig:
    return PrecomputeConfig(**{"model_name_or_path": "m", "output_dir": "o", "data_path": ["d"], **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows_per_shard": 0}, "--rows_per_shard must be positive, got 0"),
        ({"max_length": -1}, "--max_length must be positive, got -1"),
        ({"num_workers": 0}, "--num_workers must be positive, got 0"),
        ({"tokens_per_batch": 0}, "--tokens_per_batch must be positive, got 0"),
        ({"shard_timeout_s": float("nan")}, "--shard_timeout_s must be positive, got nan"),
        ({"cpus_per_worker": 0.0}, "--cpus_per_worker must be positive, got 0.0"),
        ({"limit": 0}, "--limit must be positive, got 0"),
        ({"sample": 0.0}, "--sample is a fraction above 0 and up to 1, got 0.0"),
        ({"sample": 1.5}, "--sample is a fraction above 0 and up to 1, got 1.5"),
        ({"sample": float("nan")}, "--sample is a fraction above 0 and up to 1, got nan"),
        ({"limit": 5, "sample": 0.5}, "--limit and --sample are two ways to take a subset: give one"),
        ({"seed": -1}, "--seed must not be negative, got -1"),
        ({"gpus_per_worker": -1.0}, "--gpus_per_worker is a fraction of one GPU or a whole number of them, got -1.0"),
        ({"gpus_per_worker": 1.5}, "--gpus_per_worker is a fraction .* got 1.5"),
        ({"gpus_per_worker": float("inf")}, "--gpus_per_worker is a fraction .* got inf"),
        ({"gpus_per_worker": float("nan")}, "--gpus_per_worker is a fraction .* got nan"),
        ({"max_image_pixels": PILLOW_MAX_PIXELS + 1}, "--max_image_pixels 178956971: pillow opens no image over"),
        ({"redo_status": "image_eror"}, "--redo_status image_eror: expected some of encode_error, image_error, "),
        ({"redo_status": "too_long,ok"}, "--redo_status ok: expected some of"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_flag_and_value(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        precompute(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"gpus_per_worker": 0.0},
        {"gpus_per_worker": 0.25},
        {"gpus_per_worker": 4.0},
        {"sample": 1.0},
        {"limit": 1},
        {"idle_timeout_s": float("inf")},
        {"max_image_pixels": PILLOW_MAX_PIXELS},
    ],
)
def test_a_setting_at_its_bound_is_accepted(changed: dict[str, Any]) -> None:
    (name, value), *_ = changed.items()
    assert getattr(precompute(**changed), name) == value


def test_a_wrong_value_in_a_file_reaches_the_same_checks(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("limit: -4\ndata_path: d\noutput_dir: o\nmodel_name_or_path: m")
    with pytest.raises(ConfigError, match="--limit must be positive, got -4"):
        parse_config(PrecomputeConfig, ["--config", str(tmp_path / "c.yaml")], program="p", description="d")


@pytest.mark.parametrize(
    ("given_text", "statuses"),
    [(None, set()), ("image_error", {"image_error"}), (" too_long , image_error,", {"too_long", "image_error"})],
)
def test_redo_statuses_are_separated_by_commas(given_text: str | None, statuses: set[str]) -> None:
    assert precompute(redo_status=given_text).redo_statuses() == statuses


@pytest.mark.parametrize(
    ("carry", "embedded", "resolved", "why"),
    [
        ("auto", 0, "paths", "--carry auto: the images stay where they are, rows hold their paths"),
        (
            "auto",
            10**6,
            "embedded",
            "--carry auto: 1.0 MB of embedded images are copied; those named by path stay where they are",
        ),
        (
            "auto",
            10 * 10**9,
            "embedded",
            "--carry auto: 10000.0 MB of embedded images are copied; those named by path stay where they are",
        ),
        (
            "auto",
            10 * 10**9 + 1,
            "none",
            "--carry auto: 10000.0 MB of embedded images are not copied; the output is a sidecar of the source",
        ),
        ("images", 10**12, "images", "--carry images"),
        ("none", 0, "none", "--carry none"),
    ],
)
def test_carry_auto_copies_embedded_images_up_to_10_gb_and_says_so(
    carry: str, embedded: int, resolved: str, why: str
) -> None:
    assert precompute(carry=carry).resolved_carry(embedded) == (resolved, why)


def test_a_list_flag_given_twice_is_refused_because_argparse_would_drop_the_first() -> None:
    with pytest.raises(ConfigError, match="--words is given 2 times: list all values after one flag"):
        parse("--count", "1", "--words", "a", "--words=b")


@pytest.mark.parametrize(
    ("argv", "yaml", "flags"),
    [
        (["--verify"], None, {"verify"}),
        (["--verify=true", "--clean", "yes"], None, {"verify", "clean"}),
        (["--verify", "false", "--clean=0"], None, set()),
        (["--data_path", "verify", "clean", "--help"], None, set()),
        ([], "verify: true\ndata_path: [a, b]\n", {"verify"}),
        (["--verify", "false"], "verify: true\nclean: true\n", {"clean"}),
        (["--clean"], "verify: false\n", {"clean"}),
    ],
)
def test_a_flag_that_asks_for_something_else_is_found_however_it_is_spelled(
    tmp_path: Path, argv: list[str], yaml: str | None, flags: set[str]
) -> None:
    if yaml is not None:
        (tmp_path / "c.yaml").write_text(yaml)
        argv = ["--config", str(tmp_path / "c.yaml"), *argv]
    assert chosen(PrecomputeConfig, ("verify", "clean"), argv) == flags


def test_a_value_that_is_neither_true_nor_false_is_refused_where_the_flag_is_looked_for() -> None:
    with pytest.raises(ConfigError, match="Truthy value expected: got maybe"):
        chosen(PrecomputeConfig, ("verify", "clean"), ["--verify=maybe"])
    with pytest.raises(ConfigError, match=r"^argument --verify: Truthy value expected: got maybe .*yes/no"):
        chosen(PrecomputeConfig, ("verify", "clean"), ["--model_name_or_path", "m", "--verify", "maybe"])


def test_a_mapping_in_yaml_is_the_json_of_a_flag_that_takes_one(tmp_path: Path) -> None:
    yaml = "count: 1\nextra:\n  rate: 1e-6\n  on: True\n  none:\n  name: abc\n  deep: {list: [1, x]}"
    expected = {"rate": 1e-6, "on": True, "none": None, "name": "abc", "deep": {"list": [1, "x"]}}
    assert json.loads(str(parse(yaml=yaml, to=tmp_path).extra)) == expected
    with pytest.raises(ConfigError, match="words is a mapping or nested"):
        parse(yaml="count: 1\nwords: {a: b}", to=tmp_path)


@pytest.mark.parametrize(("flag", "instead"), [("warmup_ratio", "--warmup_steps below 1"), ("no_cuda", "--use_cpu")])
def test_a_flag_that_transformers_has_no_more_says_what_took_its_place(tmp_path: Path, flag: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown flag --{flag}: .*{instead}"):
        parse("--count", "1", f"--{flag}", "0.1")
    with pytest.raises(ConfigError, match=f"--config .*unknown flag --{flag}: .*{instead}"):
        parse(yaml=f"count: 1\n{flag}: 0.1", to=tmp_path)
