"""Drafters that observe their target, trained on its own texts."""

from gls_jax.models.drafter.drafter_adapter import drafter_model
from gls_jax.models.drafter.network import DrafterConfig, DrafterNetwork

__all__ = ["DrafterConfig", "DrafterNetwork", "drafter_model"]
