"""Spells token ids from the bytes of their vocabulary pieces; no torch, and no transformers where it can be helped.

Decoding one id at a time loses spaces and turns half a character into U+FFFD. A piece's bytes lose nothing: the pieces
of a text, one after the other, are that text, and a token that holds half a character says which half.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cal_pipeline.models.directory import refuse_path, what_hub_said
from cal_pipeline.output.run_reports import reported_model
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.spec import digest_json

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "\u2581"
"""SentencePiece's mark of a space."""


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


class Pieces:
    """Bytes of every token of a vocabulary.

    Args:
        tokenizer: of the `tokenizers` library.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._kinds = _decoder_kinds(json.loads(tokenizer.to_str()).get("decoder"))
        self._added = tokenizer.get_added_tokens_decoder()
        self._byte_of = _byte_of_character()

    def bytes_of(self, token_id: int) -> bytes:
        """What the token contributes to the text; an id outside the vocabulary contributes `<id 123>`."""
        if token_id in self._added:
            return str(self._added[token_id].content).encode("utf-8", "replace")
        piece = self.tokenizer.id_to_token(token_id)
        if piece is None:
            return f"<id {token_id}>".encode()
        if "ByteLevel" in self._kinds and all(character in self._byte_of for character in piece):
            return bytes(self._byte_of[character] for character in piece)
        if "ByteFallback" in self._kinds and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        if "WordPiece" in self._kinds:
            return (piece[2:] if piece.startswith("##") else f" {piece}").encode("utf-8", "replace")
        return str(piece).replace(_BLANK, " ").encode("utf-8", "replace")

    def text_of(self, token_id: int) -> str:
        r"""The token alone: its characters, and `\xE2` for a byte that is only part of one."""
        return shown(self.bytes_of(token_id))

    def texts(self, token_ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """(codes [N] int32, distinct texts): `texts[codes[i]]` is the text of token i. One look-up per distinct id."""
        if not len(token_ids):
            return np.empty(0, np.int32), []
        if int(token_ids.min()) < 0:
            raise ConfigError(f"{int(token_ids.min())} is no token id")
        present = np.zeros(int(token_ids.max()) + 1, dtype=bool)
        present[token_ids] = True
        numbers: dict[str, int] = {}
        code = np.zeros(len(present), np.int32)
        for token_id in np.flatnonzero(present):
            code[token_id] = numbers.setdefault(self.text_of(int(token_id)), len(numbers))
        return code[token_ids], list(numbers)

    def is_special(self, token_id: int) -> bool:
        """Whether the token marks something (an end of turn) rather than spelling a word."""
        return token_id in self._added and bool(self._added[token_id].special)

    def spelled(self, token_ids: Iterable[int]) -> list[str]:
        r"""Texts of tokens that follow each other; joined they are the text itself.

        A character that is split over tokens stands with the token that completes it, the ones before have "". Bytes
        that complete no character show as in `text_of`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(_SHOW_BYTES)
        texts = [decoder.decode(self.bytes_of(int(token_id))) for token_id in token_ids]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts


def _as_hex(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"\\x{byte:02X}" for byte in error.object[error.start : error.end]), error.end


_SHOW_BYTES = "cal_show_bytes"
codecs.register_error(_SHOW_BYTES, _as_hex)


def shown(data: bytes) -> str:
    r"""UTF-8 as text; bytes that are none as `\xE2`, so that nothing is replaced in silence."""
    return data.decode("utf-8", _SHOW_BYTES)


def _decoder_kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    kinds = {str(decoder.get("type"))}
    for part in decoder.get("decoders") or []:
        kinds |= _decoder_kinds(part)
    return kinds


def as_pieces(tokenizer: Any) -> Pieces:
    """Of a `tokenizers.Tokenizer`, a fast tokenizer of transformers, a processor, a directory, or a `tokenizer.json`.

    Raises ConfigError for what is none of these.
    """
    if isinstance(tokenizer, Pieces):
        return tokenizer
    if isinstance(tokenizer, Tokenizer):
        return Pieces(tokenizer)
    if isinstance(tokenizer, str | Path):
        return Pieces(_from_path(Path(tokenizer)))
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} is no fast tokenizer: give the model's directory, its tokenizer.json, "
            "AutoTokenizer.from_pretrained(...) or a tokenizers.Tokenizer"
        )
    return Pieces(backend)


def _from_path(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file}: no such tokenizer file; give the model's directory or its tokenizer.json")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises plain Exception.
        raise ConfigError(f"{file} cannot be read as a tokenizer: {' '.join(str(error).split())[:300]}") from error


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """As the measurement's label spec has it."""
    value = json.loads(tokenizer.to_str())
    for setting in ("truncation", "padding"):  # State of the last call, not part of the tokenizer.
        value.pop(setting, None)
    return digest_json(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What shards and their run report know of the model that measured them: plain values."""

    model_id: str
    revision: str | None
    tokenizer_digest: str
    reported: str | None
    """Where the run report says it was: a directory or a hub id."""

    @classmethod
    def of(cls, opened: AnnotatedDataset) -> Reference:
        """Of opened shards."""
        spec = opened.spec
        return cls(
            model_id=spec.model_id, revision=spec.revision, tokenizer_digest=spec.label.tokenizer_digest,
            reported=reported_model(opened.files),
        )  # fmt: skip


def pieces_of_measurement(opened: AnnotatedDataset, tokenizer: str | None) -> Pieces:
    """The tokenizer whose ids the shards hold, as `pieces_of_reference` finds it."""
    return pieces_of_reference(Reference.of(opened), tokenizer, "--tokenizer")


def pieces_of_reference(reference: Reference, tokenizer: str | None, option: str) -> Pieces:
    """The tokenizer that is named, or else the reference's where that is still known; `option` names it in messages.

    Raises ConfigError where neither is known, and as `pieces_of_digest`.
    """
    reported, model_id = reference.reported, reference.model_id
    known = reported if reported and Path(reported).is_dir() else None
    # A local model's id is the last part of its path, which says nothing about where it is.
    name = tokenizer or known or (model_id if model_id.count("/") == 1 else None)
    if name is None:
        gone = f" (it was at {reported}, where no directory is now)" if reported else ""
        raise ConfigError(
            f"which tokenizer spells these ids? Give {option} with the directory of {model_id}, the reference of this "
            f"measurement{gone}"
        )
    path = Path(name)
    if not path.exists():
        path = _from_hub(name, option, reference.revision if name == model_id else None)
    return pieces_of_digest(path, reference.tokenizer_digest, f"{option} {name}", model_id)


def pieces_of_digest(tokenizer: Any, wanted: str, named: str, model_id: str) -> Pieces:
    """As `as_pieces`; ConfigError, which names both, for a tokenizer of another digest than `wanted`, `model_id`'s.

    Of a directory `tokenizer.json` alone is loaded; only where that is not the tokenizer that was measured with (a
    processor may add tokens of its own) the model's processor is asked.
    """
    pieces = as_pieces(tokenizer)
    digests = [tokenizer_digest(pieces.tokenizer)]
    if digests[0] != wanted and isinstance(tokenizer, str | Path) and Path(tokenizer).is_dir():
        from cal_pipeline.models.loading import load_processor

        pieces = as_pieces(load_processor(Path(tokenizer)))
        digests.append(tokenizer_digest(pieces.tokenizer))
    if digests[-1] != wanted:
        raise ConfigError(
            f"{named} is not what {model_id} was measured with (digest {wanted} there, "
            f"{' or '.join(dict.fromkeys(digests))} here): its words would be wrong"
        )
    return pieces


def _from_hub(name: str, option: str, revision: str | None) -> Path:
    refuse_path(option, name)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # No word of its retries: what it could not give is said below, in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(name, "tokenizer.json", revision=revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = what_hub_said(f"hf://{name}/tokenizer.json", error)
        raise ConfigError(f"{option} {name}: no such directory, and the hub did not give it: {said}") from error


def printable(text: str) -> str:
    """On one line, and without what would steer a terminal: line breaks and control characters are shown as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
