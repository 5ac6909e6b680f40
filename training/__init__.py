"""Recipes to checkpoints: the image tokenizer's and the language model's training."""

from .run.recipe import TokenizerTrainConfig, TrainConfig, load_config

__all__ = ["TokenizerTrainConfig", "TrainConfig", "load_config"]
