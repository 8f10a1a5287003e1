"""Drafters that observe their target, trained on its own texts."""

from gls_jax.models.drafter.drafter_adapter import drafter_model
from gls_jax.models.drafter.first_weights import default_observed_layers
from gls_jax.models.drafter.network import DrafterConfig, DrafterNetwork
from gls_jax.models.drafter.text_features import TextFeatures, read_texts
from gls_jax.models.drafter.training import (
    DrafterTraining,
    TrainedDrafter,
    Validation,
    train_drafter,
)

__all__ = [
    "DrafterConfig",
    "DrafterNetwork",
    "DrafterTraining",
    "TextFeatures",
    "TrainedDrafter",
    "Validation",
    "default_observed_layers",
    "drafter_model",
    "read_texts",
    "train_drafter",
]
