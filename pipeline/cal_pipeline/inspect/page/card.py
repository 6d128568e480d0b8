"""Writes the card of published shards: the README.md that the Hugging Face Hub shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cal_pipeline.inspect.tables.summary import measured_with
from cal_schemas.counted import are, counted
from cal_schemas.metadata import Carry

EXAMPLE = "example.png"
_MOST_SOURCES = 10
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7),
          ("10M<n<100M", 10**8), ("100M<n<1B", 10**9))  # fmt: skip
_OF_THE_HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_CITATION = """```bibtex
@inproceedings{xiao2024seeing,
  title     = {Seeing the Image: Prioritizing Visual Correlation by Contrastive Alignment},
  author    = {Xiao, Xin and Wu, Bohong and Wang, Jiacong and Li, Chunyuan and Zhou, Xun and Guo, Haoyuan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  eprint    = {2405.17871},
  archivePrefix = {arXiv}
}
```"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What is said of published shards."""

    repo_id: str
    summary: Mapping[str, Any]
    """As `summarise` gives it."""
    carry: Carry
    sources: Sequence[str]
    """Where the rows are from: paths without the folders of this machine, or URLs."""
    versions: Mapping[str, str]
    licence: str | None
    """An identifier of the Hub (`cc-by-4.0`); None where it is not known."""
    licence_from: str | None
    """The data set whose card names it; None where whoever published names it."""
    has_example: bool
    missing: tuple[int, int]
    """Planned shards that are not there, and their rows."""

    def text(self) -> str:
        """The whole file."""
        return "\n\n".join(
            part for part in (self._front_matter(), self._head(), self._rows(), self._deltas(), self._measured(),
                              self._loading(), self._rights()) if part
        ) + "\n"  # fmt: skip

    @property
    def hub_sources(self) -> list[str]:
        """Data sets of the Hub that rows are from."""
        return hub_sources(self.sources)

    def _front_matter(self) -> str:
        rows = self.summary["rows"]
        values = {
            "license": self.licence or "unknown",
            "pretty_name": f"{self.repo_id.partition('/')[2]}: what the image adds to each token",
            "task_categories": ["image-text-to-text"],
            "size_categories": [next((name for name, stop in _SIZES if rows < stop), "n>1T")],
            "tags": ["cal", "contrastive-alignment", "token-weights", "vision-language"],
            **({"source_datasets": self.hub_sources} if self.hub_sources else {}),
            # Of files named train and others load_dataset would take the former alone.
            "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "**/*.parquet"}]}],
        }
        return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"

    def _head(self) -> str:
        said = (
            f"# {self.repo_id.partition('/')[2]}\n\n"
            f"{self.summary['rows']:,} image-text samples, each supervised token with its **delta**: the token's logit "
            "with the image minus its logit without it, under one reference model. High: the image speaks for the "
            "word. About 0: the word needs no image. Below 0: the image speaks against it. From these come the token "
            "weights of CAL (Contrastive ALignment)."
        )
        if self.has_example:
            said += (
                f"\n\n![A sample whose words are shaded by delta: blue, the image speaks for the word; red, against it]"
                f"({EXAMPLE})\n\nBlue: the image speaks for the word. Red: against it."
            )
        if self.missing[0]:
            said += f"\n\n**Not whole**: {counted(self.missing[0], 'shard')} with {counted(self.missing[1], 'row')} "
            said += f"{are(self.missing[0])} missing."
        elif self.summary["not_whole"]:
            said += "\n\n**Not whole**: rows of some shards were taken out after they were measured."
        return said

    def _rows(self) -> str:
        images = self.summary["images"]
        held = {
            "images": "images, and the shards hold their files",
            "embedded": "images, and the shards hold their files",
            "paths": "images, by path: the files are not here",
            "none": "",
        }[self.carry]
        lines = [f"| {_cell(status)} | {count:,} |" for status, count in self.summary["statuses"].items()]
        return (
            "## Rows\n\n| status | rows |\n|---|---|\n" + "\n".join(lines)
            + f"\n\n{counted(self.summary['tokens'], 'supervised token')} of {self.summary['encoded_tokens']:,}"
            + (f"; {images:,} {held}" if images is not None else "; images and messages are in the source (a sidecar)")
            + ". A row that is not `ok` keeps its place, says why in `error`, and has no deltas."
        )  # fmt: skip

    def _deltas(self) -> str:
        delta, samples = self.summary["delta"], self.summary["samples"]["mean_delta"]
        if not self.summary["tokens"] or delta["mean"] is None:
            return ""
        shares = ("q1", "q10", "q25", "q50", "q75", "q90", "q99")
        lines = [
            f"| {name} | " + " | ".join("-" if of[share] is None else f"{of[share]:.2f}" for share in shares) + " |"
            for name, of in (("of all tokens", delta), ("mean delta of a sample", samples))
        ]
        return (
            "## Delta, in logits\n\n| | 1% | 10% | 25% | 50% | 75% | 90% | 99% |\n|---|---|---|---|---|---|---|---|\n"
            + "\n".join(lines)
            + f"\n\nMean {delta['mean']:.2f}; {delta['share_negative']:.1%} of the tokens are below 0"
            + (f"; {self.summary['undefined']:,} are undefined" if self.summary["undefined"] else "")
            + "."
        )

    def _measured(self) -> str:
        values = [(name, value) for name, value in measured_with(self.summary) if name not in ("from", "carried")]
        more = len(self.sources) - _MOST_SOURCES
        values += [
            ("rows from", ", ".join(self.sources[:_MOST_SOURCES]) + (f" and {more:,} more files" if more > 0 else "")),
            ("versions", ", ".join(f"{name} {version}" for name, version in sorted(self.versions.items()))),
        ]
        return "## What measured it\n\n| | |\n|---|---|\n" + "\n".join(
            f"| {name} | {_cell(value)} |" for name, value in values
        )

    def _loading(self) -> str:
        shown = 'row["images"], row["messages"], ' if self.carry != "none" else ""
        folder = ""
        if self.carry == "paths":
            folder = (
                "\n\nThe image files are not here: `images` has their paths. Whoever has the files gives the folder "
                "where they start (`--image_folder`)."
            )
        return f"""## How to load it

```python
from datasets import load_dataset

data = load_dataset("{self.repo_id}", split="train", filters=[("status", "==", "ok")])
row = data[0]
print({shown}row["delta_logits"])
```

`delta_logits[i]` belongs to token `label_ids[i]` of the tokenizer with the digest above; null is undefined. With
the programs of `cal-vlm` they are looked at and trained with:

```bash
hf download {self.repo_id} --repo-type dataset --local-dir annotated
cal-inspect summary annotated
cal-train --data_path annotated --model_name_or_path MODEL --output_dir trained
```{folder}"""

    def _rights(self) -> str:
        if self.licence:
            by = f"as the card of {self.licence_from} says" if self.licence_from else "as whoever published this says"
            rights = f"`{self.licence}`, {by}. The rows are the source's: its terms are theirs."
        else:
            rights = (
                "**Not known.** Texts" + ("" if self.carry in ("paths", "none") else " and images")
                + " are the source's, and whoever published this did not say under which terms: find that out before "
                "you use them or pass them on. The deltas say nothing about it."
            )  # fmt: skip
        return f"## Licence\n\n{rights}\n\n## Citation\n\nThe method:\n\n{_CITATION}\n\nThe software: `cal-vlm`" + (
            f" {self.versions['cal-vlm']}." if "cal-vlm" in self.versions else "."
        )


def hub_sources(sources: Sequence[str]) -> list[str]:
    """Data sets of the Hub among these places."""
    return sorted({found[1] for source in sources if (found := _OF_THE_HUB.match(source))})


def _cell(value: str) -> str:
    """In a table of Markdown, as it is spelled."""
    spelled = " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")
    return f"`{spelled}`" if spelled else ""
