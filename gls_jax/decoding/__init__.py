"""From logits to laws, identically for draft and target."""

from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.processors import check_sampling, log_probs

__all__ = ["LanguageModel", "check_sampling", "log_probs"]
