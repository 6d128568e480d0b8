"""LLaVA over language models that no family of the table has: what they do with positions is their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import transformers as hf

from families.family import LAYERS, Family, RefusedFamily, chat, save
from tiny_models import HIDDEN, train_tokenizer

_SHAPE: Final = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}


def _over(text_config: Callable[..., Any]) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        tokenizer = train_tokenizer(bos="<s>", eos="</s>", pad="<pad>", special=["<image>"], add_bos=True)
        template = chat("<image>\n", user="USER: ", assistant="ASSISTANT: ", end="</s>")
        processor = hf.LlavaProcessor(
            hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}), tokenizer, patch_size=14,
            vision_feature_select_strategy="full", num_additional_image_tokens=0, chat_template=template,
        )  # fmt: skip
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        config = hf.LlavaConfig(
            vision_config=hf.SiglipVisionConfig(**LAYERS, image_size=28, patch_size=14, vision_use_head=False),
            text_config=text_config(**ids, vocab_size=len(tokenizer), tie_word_embeddings=False),
            image_token_index=processor.image_token_id, image_seq_length=4, vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )  # fmt: skip
        save(directory, hf.LlavaForConditionalGeneration, config, processor)

    return build


def _gpt_neox(**values: Any) -> Any:
    return hf.GPTNeoXConfig(**values, **_SHAPE, intermediate_size=64)


def _mpt(**values: Any) -> Any:
    return hf.MptConfig(**values, d_model=HIDDEN, n_heads=2, n_layers=2, max_seq_len=512)


def _bloom(**values: Any) -> Any:
    return hf.BloomConfig(**values, hidden_size=HIDDEN, n_layer=2, n_head=2)


GPT_NEOX: Final = Family(name="llava_gpt_neox", build=_over(_gpt_neox), markers=("<image>",))
"""Its config has dropout of a head that sorts tokens into classes."""
MPT: Final = Family(name="llava_mpt", build=_over(_mpt), markers=("<image>",), attention="eager")
"""ALiBi over places in the row: dropping closes the gap, masking does not."""
BLOOM: Final = RefusedFamily(
    name="llava_bloom", build=_over(_bloom), says="llava_bloom: .* pays no heed to position ids", attention="eager",
    reason="it counts places by the attention mask; use --contrast patch_mask or gaussian_blur", perturbed=True,
)  # fmt: skip
"""ALiBi over what the attention mask leaves: dropping and masking both close the gap."""
