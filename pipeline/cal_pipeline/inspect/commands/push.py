"""Publishes annotated shards as a data set of the Hugging Face Hub, with a card that says what measured them.

    cal-inspect push annotated/ --repo_id ORG/NAME --images embed --license cc-by-4.0
    cal-inspect push annotated/ --repo_id ORG/NAME --images leave_out --dry_run card/
    cal-inspect push annotated/ --repo_id ORG/NAME --images leave_out --public

What goes out has no path of this machine and no secret of a URL, and nothing of `.cal/` but the list of shards. A new
data set is private unless --public is given. After an interruption the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page.card import EXAMPLE, Card, hub_sources
from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.inspect.tables.hub_repository import CARD, HubRepository
from cal_pipeline.inspect.tables.published_shards import Images, PublishedShards, plan_text
from cal_pipeline.inspect.tables.summary import summarise
from cal_schemas.counted import counted
from cal_schemas.errors import CalError, ConfigError, IncompleteError
from cal_schemas.opened import AnnotatedDataset, open_annotated
from cal_schemas.storage.locations import Location
from cal_schemas.whole import PLAN

_SHARDS_PER_COMMIT, _BYTES_PER_COMMIT = 50, 2 * 10**9
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect push`."""
    flags.add_annotated(parser)
    parser.add_argument("--repo_id", required=True, metavar="ORG/NAME", help="of the data set on the Hub")
    parser.add_argument(
        "--images", choices=get_args(Images),
        help="embed: publish the image files, which may be other people's; leave_out: their names alone. Must be given "
        "where shards hold image files (default: leave_out)",
    )  # fmt: skip
    parser.add_argument("--license", metavar="ID", help="of the source, as the Hub spells it (cc-by-4.0, other, …)")
    parser.add_argument("--public", action="store_true", help="for everybody to see (default: a private data set)")
    parser.add_argument("--partial", action="store_true", help="publish what is there where shards or rows are missing")
    parser.add_argument(
        "--dry_run", type=flags.local_place, metavar="DIR", help="write the card to this new directory, and end"
    )
    flags.add_tokenizer(parser)
    flags.add_image_folder(parser)


def run(arguments: argparse.Namespace) -> int:
    """Publishes shards, and the card when they are all there; 0."""
    opened = _opened(arguments.annotated, partial=arguments.partial)
    shards = PublishedShards.of(
        opened, arguments.annotated, images=arguments.images, image_folder=arguments.image_folder
    )
    if arguments.dry_run:
        with flags.new_directory(arguments.dry_run, flag="--dry_run") as folder:
            for name, data in _card(shards, arguments, None).items():
                (folder / name).write_bytes(data)
        flags.say(f"{arguments.dry_run}: the card; nothing was published")
        return 0
    repository, plan = HubRepository(arguments.repo_id), shards.plan()
    there = repository.look()
    repository.validate(there, plan)
    if there.exists and not there.private and not arguments.public:
        raise ConfigError(
            f"--repo_id {arguments.repo_id} is public: --public publishes there, or make it private in its settings"
        )
    if there.exists and there.private and arguments.public:
        _log.warning("%s is private and stays so: its settings make it public", arguments.repo_id)
    names = {file: shards.names[file].as_posix() for file in opened.files}
    todo = [file for file, name in names.items() if name not in there.files]
    card = {}
    if there.plan != plan or not there.has_card:
        card = _card(shards, arguments, repository)
        repository.check_card(card[CARD].decode())
    elif arguments.license and arguments.license != repository.licence_of(arguments.repo_id):
        _log.warning("%s has its card, which stays as it is, licence and all: edit it there", repository.address)
    repository.create(private=not arguments.public)  # Now, as not every token may.
    with shown_progress("shards checked", len(todo)) as advance:
        for file in todo:  # All of them before any: what is damaged is not half published.
            shards.validate(file)
            advance(1)
    if there.plan != plan:
        # A card of less than that must not outlive an interruption.
        repository.commit("Begin", {PLAN: plan_text(plan).encode()}, remove=[CARD] if there.has_card else [])
    try:
        _publish(repository, shards, names, todo)
    except OSError as error:
        if isinstance(error, CalError):
            raise
        raise ConfigError(
            f"{tempfile.gettempdir()} cannot be written ({error}): TMPDIR names another folder"
        ) from error
    if card:
        repository.commit("Describe them", dict(card))
    rows = counted(opened.num_rows, "row")
    as_before = "" if card or todo else ", as before"
    flags.say(f"{repository.address}: {counted(len(names), 'shard')}, {rows}{as_before}")
    return 0


def _publish(
    repository: HubRepository, shards: PublishedShards, names: Mapping[Location, str], todo: Sequence[Location]
) -> None:
    """Sends shards in commits of bounded size."""
    waiting = list(todo)
    with (
        tempfile.TemporaryDirectory(prefix="cal-push-") as folder,
        shown_progress("shards published", len(todo)) as advance,
    ):
        while waiting:
            written: dict[str, Path | bytes] = {}
            size = 0
            while waiting and len(written) < _SHARDS_PER_COMMIT and size < _BYTES_PER_COMMIT:
                target = Path(folder) / f"{len(written)}.parquet"
                shards.write(waiting[0], target)
                written[names[waiting.pop(0)]] = target
                size += target.stat().st_size
            repository.commit(f"Add shards, {len(names) - len(waiting)} of {len(names)}", written)
            advance(len(written))


def _opened(paths: Sequence[Location], *, partial: bool) -> AnnotatedDataset:
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: no such file or directory")
    try:
        return open_annotated(paths, partial=partial)
    except IncompleteError as error:
        raise IncompleteError(f"{error}. To publish what is there: --partial") from error


def _card(shards: PublishedShards, arguments: argparse.Namespace, repository: HubRepository | None) -> dict[str, bytes]:
    """Files of the card by name."""
    opened, private = shards.opened, shards.private
    sources = sorted({private.uri(item.source.uri) for item in opened.metadata})
    licence, licence_from = arguments.license, None
    of_hub = hub_sources(sources)
    if licence is None and repository is not None and len(of_hub) == 1:
        licence, licence_from = repository.licence_of(of_hub[0]), of_hub[0]
    if licence is None:
        why = "not looked up in a dry run" if of_hub and repository is None else "not known"
        _log.warning("the licence of the source is %s, and the card says so: --license names it", why)
    with tempfile.TemporaryDirectory() as folder:
        example = _example(shards, arguments, Path(folder) / EXAMPLE)
    missing = opened.completeness.missing
    card = Card(
        repo_id=arguments.repo_id,
        summary=summarise(opened),
        carry=shards.carry,
        sources=sources,
        versions=dict(opened.metadata[0].library_versions),
        licence=licence,
        licence_from=licence_from,
        has_example=example is not None,
        missing=(len(missing), sum(missing.values())),
    )
    return {CARD: card.text().encode(), **({EXAMPLE: example} if example else {})}


def _example(shards: PublishedShards, arguments: argparse.Namespace, file: Path) -> bytes | None:
    """The drawn sample; None, which is said, where its words or its images are not at hand."""
    from cal_pipeline.inspect.page.card_example import choose_example, example_figure
    from cal_pipeline.inspect.page.plots import save
    from cal_pipeline.inspect.page.sample import shown_sample

    if (place := choose_example(shards.opened)) is None:
        _log.warning("the card has no example: no row with an image has between 8 and 60 supervised tokens")
        return None
    try:
        shown = shown_sample(
            shards.opened, place, tokenizer=arguments.tokenizer, image_folder=arguments.image_folder,
            alpha=1.0, beta=5.0, window=3, pool="span",
        )  # fmt: skip
        if shown.missing:
            raise ConfigError(shown.missing)
    except CalError as error:
        if arguments.tokenizer:
            raise
        _log.warning("the card has no example: %s", error)
        return None
    save(example_figure(shown, with_image=shards.images == "embed"), file)
    return file.read_bytes()
