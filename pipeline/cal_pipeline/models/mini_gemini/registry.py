"""Registers the models of this folder with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from cal_pipeline.models.mini_gemini.configuration import MiniGeminiConfig
from cal_pipeline.models.mini_gemini.modeling import MiniGeminiForConditionalGeneration, MiniGeminiModel
from cal_pipeline.models.mini_gemini.processor import MiniGeminiImageProcessor, MiniGeminiProcessor


def register() -> None:
    """Registers each class once; calling it again does nothing."""
    AutoConfig.register(MiniGeminiConfig.model_type, MiniGeminiConfig, exist_ok=True)
    AutoModel.register(MiniGeminiConfig, MiniGeminiModel, exist_ok=True)
    AutoModelForImageTextToText.register(MiniGeminiConfig, MiniGeminiForConditionalGeneration, exist_ok=True)
    classes = {"pil": MiniGeminiImageProcessor, "torchvision": MiniGeminiImageProcessor}
    AutoImageProcessor.register(MiniGeminiConfig, image_processor_classes=classes, exist_ok=True)
    AutoProcessor.register(MiniGeminiConfig, MiniGeminiProcessor, exist_ok=True)
