"""Lists what no general rule serves, with the reason beside each entry; docs/models.md has every family.

Rules come first and live where they act: encoder-decoders by their config (loading), pixel inputs that a forward
requires by its signature (measuring.contrast), text that a processor inserts by its own report or from what it hands to
its tokenizer (encoding.spans), layers that a mask does not reach by their type (below).
"""

from __future__ import annotations

from typing import Any, Final

REFUSED_MODELS: Final = {
    "chameleon": "its wrapper indexes the logits by vocabulary, to forbid image tokens; label logits have no such axis",
    "git": "images stand in front of the text as hidden rows without tokens: none can be dropped, and rows and "
    "labels do not line up",
    "blip": "images enter by cross-attention in every layer and its forward demands them: there is no pass without",
    "idefics": "images enter by cross-attention and its forward demands them in every pass; its processor puts a row's "
    "images behind the text, whatever the placeholders in it",
    "diffusion_gemma": "it denoises blocks of tokens; a token has no logit given those before it",
    "unlimited_ocr": "it splits its tiles by a list of numbers, and a batch holds tensors: rows of two images fail",
    "kosmos-2": "its processor takes no placeholder for an image: it puts one before every text by itself",
    "mistral4": "a decoder of text alone; with images it is the text model of a Mistral 3",
    "pi0": "it predicts a robot's actions, not tokens",
}
"""`model_type` of a config to why it is neither a reference nor trained here."""

REFUSED_PROCESSORS: Final = {
    "InstructBlipProcessor": "its Q-Former reads the whole text, the answer too: image tokens would know the labels",
    "InstructBlipVideoProcessor": "its Q-Former reads the whole text, the answer too",
    "Kosmos2_5Processor": "it puts one image before every text, and takes no row without",
    "GotOcr2Processor": "it demands an image for every row, and takes several of one for pages of a document alone",
    "ShieldGemma2Processor": "it writes a prompt of its own for every policy and reads no conversation",
}
"""Class name to why no sample can be encoded with it."""

PREFIX_PROCESSORS: Final = {
    "Blip2Processor": "it puts the ids of one image before the text's BOS, without any text: there is no offset",
}
"""Class name to why its image tokens are found by their number, `num_query_tokens`, at the front."""

UNIFORM_SHAPE_BATCHES: Final = {
    "MllamaProcessor": "a token before its image, and every token of a row without one, attends evenly to all of the "
    "batch's images and their padding: a row's logits depend on how many images its neighbours have",
}
"""Class name to why only samples with pixel inputs of one shape may share a batch; training takes one row at a time."""

_ATTENTION_LAYERS: Final = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
"""Layer types that see other tokens through the attention mask alone."""


def mask_undefined(text_config: Any) -> str | None:
    """Tells why contrast `mask` has no meaning for this decoder, or None where it has.

    Takes the decoder's config. Contrast `drop` defines its deltas then.
    """
    if getattr(text_config, "cross_attention_layers", None):
        return "images enter by cross-attention, which does not pass through the text's attention mask"
    for name in ("layer_types", "layers_block_type"):
        if others := sorted(set(getattr(text_config, name, None) or []) - _ATTENTION_LAYERS):
            return f"layers of type {', '.join(others)} carry a token's content past the attention mask"
    return None
