"""Defines every error a user of this project is meant to read.

Anything else that is raised is a bug and keeps its own traceback. Each class takes one message, so that it
survives pickling on its way out of a worker process.
"""

from __future__ import annotations

from typing import ClassVar

from cal_schemas.redaction import redacted


class CalError(Exception):
    """Root of the family; its message holds no password of a URL."""

    def __init__(self, message: object = "") -> None:
        super().__init__(redacted(str(message)))


class ConfigError(CalError, ValueError):
    """The user asked for something impossible; the message says what and the way out."""


class SidecarError(ConfigError):
    """Annotated shards without the images and messages that are needed here."""


class IncompleteError(ConfigError):
    """Annotated shards, or rows of them, that were planned are not there."""


class FormatError(CalError):
    """A file breaks the annotated-shard format, or has another version or measurement."""


class SeveralReferencesError(FormatError):
    """Shards that agree in all but the reference: a mistake, or a cross-fit."""


class AlignmentError(CalError):
    """Stored labels and present labels differ: training on them would use shifted weights."""


class MissingDeltaError(CalError, LookupError):
    """A sidecar has no row for this sample of its source."""


class DivergedError(CalError):
    """In training the loss, or a weight, is NaN or infinite."""


class ShardError(CalError):
    """This input shard cannot be read: it is corrupt, or its disk or its images' folder is ill; others can go on."""


class SurroundingsError(ShardError):
    """A shard cannot be read now, and may be later: its disk, its share, its image folder or this machine is ill."""


class StoreError(CalError, OSError):
    """A store gave no answer after all tries, or refused, or a folder cannot be listed; says nothing about the data."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SampleError(CalError):
    """This one example is unusable: its row keeps its place, with `status` and the message as `error`."""

    status: ClassVar[str] = "encode_error"
    num_tokens: int | None = None
    """Length of the encoding, where it got so far."""


class ContrastError(SampleError):
    """The perturbed image would have other tokens than the image: an `encode_error`."""


class ImageError(SampleError):
    """An image is missing, corrupt, too large, or outside the image folder."""

    status = "image_error"


class NoSupervisedTokensError(SampleError):
    """The conversation has no assistant words to learn from."""

    status = "no_supervised_tokens"


class TooLongError(SampleError):
    """The encoding exceeds the maximum length."""

    status = "too_long"


class NonFiniteError(SampleError):
    """The reference gave NaN or infinity for a supervised token."""

    status = "non_finite"


class OutOfMemoryError(SampleError):
    """The sample does not fit into the accelerator's memory, alone in its batch."""

    status = "out_of_memory"


STATUS_OK = "ok"
STATUSES: tuple[str, ...] = (
    STATUS_OK,
    *(
        kind.status
        for kind in (SampleError, ImageError, NoSupervisedTokensError, TooLongError, NonFiniteError, OutOfMemoryError)
    ),
)
"""What this version writes into the `status` column; readers treat it as an open set."""
