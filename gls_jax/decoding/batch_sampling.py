"""Sampling parameters of a batch of requests."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax.decoding.processors import log_probs

__all__ = ["Sampling", "also", "over_items"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters of B requests, the same for draft and target but for the temperature.

    Attributes:
        temperature: `f32[B]`, of the target.
        draft_temperature: `f32[B, K]`, or `f32[B, 1]` where all drafts have one.
        top_p, min_p, repetition_penalty: `f32[B]` or None.
        top_k: static, or None.
    """

    temperature: Float[Array, " B"]
    draft_temperature: Float[Array, "B D"]
    top_p: Float[Array, " B"] | None = None
    min_p: Float[Array, " B"] | None = None
    repetition_penalty: Float[Array, " B"] | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})

    def laws(
        self,
        logits: Float[Array, "B C V"],
        temperature: Float[Array, "B _"],
        seen: Bool[Array, "B c N"] | None,
        num_items: int,
    ) -> Float[Array, "B D N"]:
        """Laws over `num_items` tokens after each context.

        Args:
            logits: of each context.
            temperature: `f32[B, C]`, or one a draft where `C = 1`.
            seen: the tokens of each context; None without a repetition penalty.
            num_items: `N`.
        """
        each = {
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
        }
        columns = {name: None if value is None else value[:, None] for name, value in each.items()}
        logits = over_items(logits, num_items)
        return log_probs(logits, temperature=temperature, top_k=self.top_k, seen=seen, **columns)


def over_items(logits: Float[Array, "B C V"], num_items: int) -> Float[Array, "B C N"]:
    """Logits over the target's tokens: cut, or filled up with impossible ones.

    Vocabularies of one tokenizer are padded to different sizes, and the target's size counts.
    """
    missing = max(0, num_items - logits.shape[-1])
    logits = logits[..., :num_items].astype(jnp.float32)
    return jnp.pad(logits, ((0, 0), (0, 0), (0, missing)), constant_values=-jnp.inf)


def also(seen: Bool[Array, "B C N"], tokens: Int[Array, "B C"]) -> Bool[Array, "B C N"]:
    """The tokens seen, and one more for each context."""
    return seen | (jnp.arange(seen.shape[-1]) == tokens[..., None])
