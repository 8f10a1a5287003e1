"""From logits to laws, identically for draft and target."""

from gls_jax.decoding.processors import log_probs

__all__ = ["log_probs"]
