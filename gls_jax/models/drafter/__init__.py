"""Drafters that observe their target, trained on its own texts."""

from gls_jax.drafter_options import DrafterTraining, TextSource
from gls_jax.models.drafter.drafter_adapter import drafter_model
from gls_jax.models.drafter.drafter_file import (
    FILE_NAME,
    DrafterFile,
    is_drafter,
    load_drafter,
    read_drafter,
    save_drafter,
    shipped_drafter,
)
from gls_jax.models.drafter.evaluation import HeldOut, Validation, held_out_distributions
from gls_jax.models.drafter.first_weights import default_observed_layers
from gls_jax.models.drafter.making import make_drafter
from gls_jax.models.drafter.network import DrafterConfig, DrafterNetwork
from gls_jax.models.drafter.objectives import parse_objective
from gls_jax.models.drafter.text_features import TextFeatures, read_texts
from gls_jax.models.drafter.training import TrainedDrafter, train_drafter

__all__ = [
    "FILE_NAME",
    "DrafterConfig",
    "DrafterFile",
    "DrafterNetwork",
    "DrafterTraining",
    "HeldOut",
    "TextFeatures",
    "TextSource",
    "TrainedDrafter",
    "Validation",
    "default_observed_layers",
    "drafter_model",
    "held_out_distributions",
    "is_drafter",
    "load_drafter",
    "make_drafter",
    "parse_objective",
    "read_drafter",
    "read_texts",
    "save_drafter",
    "shipped_drafter",
    "train_drafter",
]
