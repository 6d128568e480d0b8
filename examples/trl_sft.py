"""TRL's script of supervised fine-tuning on cached weights: its flags, and three of ours.

    python examples/trl_sft.py --model_name_or_path MODEL --data_path ANNOTATED --output_dir OUTPUT --max_length none

ANNOTATED is what cal-precompute wrote. The other flags are those of SFTConfig and ModelConfig (--use_peft, --bf16, …).
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoProcessor
from trl import ModelConfig, SFTConfig, TrlParser, get_peft_config, get_quantization_config

from cal_pipeline import Encoder
from cal_trainer import AnnotatedExamples, Weighting
from cal_trainer.integrations.trl import CalSFTTrainer


@dataclass
class CalArguments:
    """What TRL has no flags for."""

    data_path: Path
    alpha: float = 1.0
    beta: float = 5.0


def main(ours: CalArguments, arguments: SFTConfig, model: ModelConfig) -> None:
    processor = AutoProcessor.from_pretrained(
        model.model_name_or_path, revision=model.model_revision, trust_remote_code=arguments.trust_remote_code
    )
    encoder = Encoder(processor)  # template, … as in cal-precompute
    arguments.model_init_kwargs = {
        **(arguments.model_init_kwargs or {}),
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "revision": model.model_revision,
    }
    trainer = CalSFTTrainer(
        model=model.model_name_or_path,
        args=arguments,
        train_dataset=AnnotatedExamples(ours.data_path, encoder),
        weighting=Weighting(alpha=ours.alpha, beta=ours.beta),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model(arguments.output_dir)


if __name__ == "__main__":
    main(*TrlParser((CalArguments, SFTConfig, ModelConfig)).parse_args_and_config(fail_with_unknown_args=True))
