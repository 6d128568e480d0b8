from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from cal_pipeline.inspect.tables.token_text import Pieces, as_pieces
from cal_schemas.errors import ConfigError
from tiny_models import train_tokenizer


def byte_level() -> Tokenizer:
    return train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", add_bos=False).backend_tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama's: blanks as U+2581, what the vocabulary lacks as bytes."""
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcdefgh", "\u2581a", "b\u2581"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_tokens_one_after_the_other_are_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts = Pieces(tokenizer).spelled(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert not any("\ufffd" in piece for piece in texts) or "\ufffd" in text


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_ids_in_any_order_never_crash_and_hide_nothing(kind: str, data: Any) -> None:
    pieces = Pieces(TOKENIZERS[kind])
    ids = data.draw(st.lists(st.integers(0, TOKENIZERS[kind].get_vocab_size() + 5), max_size=12))
    joined = "".join(pieces.spelled(ids))
    whole = b"".join(pieces.bytes_of(token_id) for token_id in ids)
    assert joined == whole.decode("utf-8", "cal_show_bytes")


def test_half_a_character_shows_its_bytes_and_the_whole_stands_where_it_is_complete() -> None:
    pieces = Pieces(TOKENIZERS["byte_level"])
    ids = TOKENIZERS["byte_level"].encode("\u20ac", add_special_tokens=False).ids
    assert [pieces.text_of(token_id) for token_id in ids] == ["\\xE2", "\\x82", "\\xAC"]
    assert pieces.spelled(ids) == ["", "", "\u20ac"]
    assert pieces.spelled(ids[:2]) == ["", "\\xE2\\x82"]


def test_added_tokens_and_unknown_ids_are_named() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("\u0120plain \u00e9")])
    pieces = Pieces(tokenizer)
    added = tokenizer.token_to_id("\u0120plain \u00e9")
    assert pieces.text_of(added) == "\u0120plain \u00e9"
    assert not pieces.is_special(added)
    assert pieces.is_special(tokenizer.token_to_id("</s>"))
    assert pieces.text_of(10**6) == "<id 1000000>"


def test_what_is_no_fast_tokenizer_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="no fast tokenizer"):
        as_pieces(object())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a tokenizer"):
        as_pieces(tmp_path)
