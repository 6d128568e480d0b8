"""Compares two measurements of the same samples, joined by sample_key, or several scores of one measurement.

    cal-inspect compare annotated_7b/ annotated_13b/
    cal-inspect compare annotated_7b/ annotated_13b/ --output scatter.png
    cal-inspect compare annotated_7b/ annotated_13b/ --json
    cal-inspect compare annotated/ --scores
    cal-inspect compare annotated/ --scores kl entropy --top 0

Of two: how far deltas (or other scores) and weights are apart. Of one: rank correlations between its scores, and the
tokens on which each differs most from delta_logit. Equal samples have equal keys; where a key occurs several times the
first is joined to the first, and so on. B's deltas are held in memory (4 bytes a token), and about 100 bytes a row; A
streams by.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from rich.text import Text

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.flags import say
from cal_pipeline.inspect.tables.comparison import MOVED, Comparison, compare, trimmed
from cal_pipeline.inspect.tables.flat import noun
from cal_pipeline.inspect.tables.joining import keyed_by_bytes
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.score_ranks import Differing, ScoreRanks, cached_scores, rank_scores
from cal_pipeline.inspect.tables.token_statistics import aligned
from cal_pipeline.inspect.tables.token_text import Pieces, pieces_of_measurement, printable
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import are, counted
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score

_OF_FIGURE = ("score", "map", "alpha", "beta")
_OF_WEIGHTS = (*_OF_FIGURE, "window", "pool")
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect compare`."""
    parser.add_argument("a", type=flags.place, metavar="A", help="annotated directory")
    other = parser.add_argument(
        "b", type=flags.place, metavar="B", help="another of the same samples; not with --scores"
    )

    class Scores(argparse.Action):
        """Takes B's place."""

        def __call__(self, _: object, namespace: argparse.Namespace, values: Any, __: str | None = None) -> None:
            other.required = False
            setattr(namespace, self.dest, values)

    parser.add_argument(
        "--scores", nargs="*", action=Scores, choices=get_args(Score), metavar="SCORE",
        help="rank correlations between the scores of A: these, or all that it holds",
    )  # fmt: skip
    parser.add_argument(
        "--top", type=flags.at_least(0), default=5, help="with --scores: tokens shown of each (default 5)"
    )
    flags.add_tokenizer(parser)
    flags.add_weighting(parser)
    parser.add_argument("--output", type=flags.place, metavar="FILE", help="scatter plot as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the comparison; 0. Two directories with nothing to compare are refused."""
    if arguments.scores is not None:
        return _compare_scores(arguments)
    a, b = open_paths(arguments.a), open_paths(arguments.b)
    weightings = [weighting_of(arguments, opened) for opened in (a, b)]
    score: Score = weightings[0]["score"]
    path = None
    if arguments.output:
        from cal_pipeline.inspect.page import plots

        path = flags.new_file(arguments.output, *flags.FIGURE_SUFFIXES)
    comparison = compare(a, b, weightings)
    _validate(comparison, arguments, a, b)
    result = comparison.result()
    differing = {name: [one, other] for name, one, other in a.spec.differences(b.spec)}
    if arguments.json:
        print(json.dumps({"score": score, **result, "spec_differences": differing}, indent=1, allow_nan=False))  # noqa: T201
    else:
        _print(result, differing, arguments, score)
    if path:
        names = (arguments.a.name or str(arguments.a), arguments.b.name or str(arguments.b))
        title = f"{result['tokens']:,} tokens, correlation {_correlation(result)}"
        figure = plots.scatter_figure(
            *trimmed(comparison), names=names, title=title, **{name: weightings[0][name] for name in _OF_FIGURE}
        )
        plots.save(figure, path)
        if not arguments.json:
            print(path)  # noqa: T201
    return 0


def _validate(comparison: Comparison, arguments: argparse.Namespace, a: AnnotatedDataset, b: AnnotatedDataset) -> None:
    ok, others = comparison.both_ok, comparison.other_labels
    alone = comparison.joined < min(comparison.rows_a, comparison.rows_b)
    keyed = (keyed_by_bytes(a), keyed_by_bytes(b)) if alone else (None, None)
    if comparison.tokens:
        if None not in keyed and keyed[0] != keyed[1]:
            _log.warning("some rows are in A or B alone: %s", _why_other_keys(*keyed))
        return
    if not comparison.joined:
        reason = f"no sample_key is in both; {_why_other_keys(*keyed)}"
    elif not ok:
        reason = f"of {comparison.joined} joined rows none is ok in both"
    elif others == ok:
        examples = ", ".join(comparison.examples)
        reason = (
            f"all {others} rows that are ok in both have other label ids ({examples}): another tokenizer or template"
        )
    else:
        reason = "no token has a defined score in both"
    raise ConfigError(
        f"nothing to compare in {arguments.a} ({comparison.rows_a} rows) and {arguments.b} ({comparison.rows_b} rows): "
        f"{reason}"
    )


def _why_other_keys(a: bool | None, b: bool | None) -> str:
    """What can be the reason, by what `keyed_by_bytes` says of both."""
    if a is None or b is None:
        return "words or images differ, or images were embedded in one and named by path in the other"
    if a != b:
        one, other = ("A", "B") if a else ("B", "A")
        return f"{one} was measured from embedded images, {other} from paths: measure both from the same source"
    how = "embedded images, so the words or the images" if a else "image paths, so the words or the paths"
    return f"both were measured from {how} differ: a key is made from them"


def _correlation(result: Mapping[str, Any]) -> str:
    value = result["correlation"]
    return "undefined (no spread)" if value is None else f"{value:.4f}"


def _print(
    result: Mapping[str, Any], differing: Mapping[str, Any], arguments: argparse.Namespace, score: Score
) -> None:
    unit = f" {SCORES[score].unit}" if SCORES[score].unit else ""
    if score != DEFAULT_SCORE:
        say(f"score: {score} = {SCORES[score].equation}")
    say(f"A: {arguments.a}, {counted(result['rows_a'], 'row')}\nB: {arguments.b}, {counted(result['rows_b'], 'row')}")
    only = [result[f"rows_{side}"] - result["joined"] for side in "ab"]
    say(f"{counted(result['joined'], 'row')} joined by sample_key ({only[0]:,} only in A, {only[1]:,} only in B); "
        f"{result['both_ok']:,} {are(result['both_ok'])} ok in both")  # fmt: skip
    if result["other_labels"]:
        say(
            f"{result['other_labels']:,} of them have other label ids and are left out: {', '.join(result['examples'])}"
        )
    undefined = result["undefined_in_one"]
    note = f"; {undefined:,} are undefined in one of the two" if undefined else ""
    say(f"{counted(result['tokens'], 'token')} compared{note}")
    say(f"correlation               {_correlation(result)}")
    say(f"mean difference, A - B    {result['mean_difference']:+#.4g}{unit}")
    say(f"mean absolute difference  {result['mean_absolute_difference']:#.4g}{unit}")
    say(f"rms difference            {result['rms_difference']:#.4g}{unit}")
    say(f"max difference            {result['max_difference']:#.4g}{unit}")
    say(f"weight moved by more than {MOVED}: {result['share_moved']:.2%} of the tokens")
    say("measured alike" if not differing else "measured differently:")
    for name, (one, other) in differing.items():
        say(f"  {name}: {one!r} in A, {other!r} in B")


def _compare_scores(arguments: argparse.Namespace) -> int:
    """Prints how alike the scores of one directory rank its tokens; 0."""
    if arguments.b is not None or arguments.output:
        raise ConfigError(
            f"--scores compares the scores of one directory, {arguments.a}, in a table: leave "
            f"{'--output' if arguments.b is None else arguments.b} out"
        )
    given = [f"--{name}" for name in ("preset", *_OF_WEIGHTS) if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(f"--scores compares scores, whatever weights are made of them: leave {', '.join(given)} out")
    opened = open_paths(arguments.a)
    there = cached_scores(opened)
    scores = [ragged_weighting(score=score)["score"] for score in arguments.scores] or there
    if set(scores) == {DEFAULT_SCORE}:
        raise ConfigError(
            f"{arguments.a} holds {', '.join(there)}, and --scores compares two or more: name others, or measure them "
            "with cal-precompute --extra_columns logprobs,kl,entropy"
        )
    pieces = pieces_of_measurement(opened, arguments.tokenizer) if arguments.top else None
    ranked = rank_scores(opened, scores, top=arguments.top)
    if arguments.json:
        print(json.dumps(_values(ranked, pieces), indent=1, allow_nan=False))  # noqa: T201
    else:
        _print_scores(ranked, pieces)
    return 0


def _values(ranked: ScoreRanks, pieces: Pieces | None) -> dict[str, Any]:
    """Plain values, null where undefined."""

    def named(matrix: np.ndarray) -> dict[str, dict[str, float | None]]:
        return {
            score: {other: None if np.isnan(value) else value for other, value in zip(ranked.scores, row, strict=True)}
            for score, row in zip(ranked.scores, matrix.tolist(), strict=True)
        }

    def token(score: Score, item: Differing) -> dict[str, Any]:
        before, text, after = item.token.in_text(pieces) if pieces else ("", "", "")
        return {
            "sample_id": item.token.sample_id, "row": item.token.order[0], "position": item.token.position,
            "before": before, "token": text, "after": after, DEFAULT_SCORE: item.token.score, score: item.value,
            "share_below": {DEFAULT_SCORE: item.below[0], score: item.below[1]},
        }  # fmt: skip

    return {
        "rows": ranked.rows,
        "tokens": ranked.tokens,
        "undefined": ranked.undefined,
        "compared": ranked.compared,
        "of_tokens": named(ranked.of_tokens),
        "of_samples": named(ranked.of_samples),
        "differing": {score: [token(score, item) for item in items] for score, items in ranked.differing.items()},
    }


def _print_scores(ranked: ScoreRanks, pieces: Pieces | None) -> None:
    console = flags.console()
    drawn = "" if ranked.compared == ranked.tokens else f", on {ranked.compared:,} of them, drawn at random"
    left = f"; {ranked.undefined:,} without one of the scores left out" if ranked.undefined else ""
    say(f"{counted(ranked.tokens, 'token')} of {counted(ranked.rows, 'row')} with images{drawn}{left}")
    for title, matrix in (
        ("rank correlation over the tokens", ranked.of_tokens),
        ("rank correlation over the samples, of their means", ranked.of_samples),
    ):
        table = flags.table("", *ranked.scores, left=[""], title=title, overflow="fold")
        for score, values in zip(ranked.scores, matrix, strict=True):
            table.add_row(score, *("-" if np.isnan(value) else f"{value:.3f}" for value in values))
        console.print("", table)
    for score, items in ranked.differing.items() if pieces else ():
        assert pieces is not None
        columns = (noun(DEFAULT_SCORE), "rank", score, "rank", "sample_id", "token in its text")
        title = f"ranked most differently by {score} (rank: share of the tokens below)"
        table = flags.table(*columns, left=columns[4:], title=title, overflow="fold")
        for item, text in zip(items, aligned([item.token for item in items], pieces), strict=True):
            values = (f"{item.token.score:.2f}", f"{item.below[0]:.1%}", f"{item.value:#.3g}", f"{item.below[1]:.1%}")
            table.add_row(*values, Text(printable(item.token.sample_id)), text)
        console.print("", table)
