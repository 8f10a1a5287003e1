"""Sampling parameters of a batch of requests."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax.decoding.sampling_parameters import log_probs

__all__ = ["BatchSampling", "add_tokens", "resize_vocabulary", "scatter_logits"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BatchSampling:
    """Sampling parameters of B requests; draft and target differ in their temperature only.

    Attributes:
        temperature: `f32[B]`, of the target.
        draft_temperature: `f32[B, K]`, or `f32[B, 1]` where all drafts have the same.
        top_p, min_p, repetition_penalty: `f32[B]` or None.
        vocab_size: `N`, the target's, static.
        top_k: static, or None.
    """

    temperature: Float[Array, " B"]
    draft_temperature: Float[Array, "B _"]
    vocab_size: int = dataclasses.field(metadata={"static": True})
    top_p: Float[Array, " B"] | None = None
    min_p: Float[Array, " B"] | None = None
    repetition_penalty: Float[Array, " B"] | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})

    def log_probs(
        self,
        logits: Float[Array, "B C V"],
        temperature: Float[Array, "B _"],
        seen: Bool[Array, "B _ N"] | None,
        tokens: Int[Array, " V"] | None = None,
    ) -> Float[Array, "B D _"]:
        """D distributions of each request, over the target's vocabulary or over `tokens`.

        There is one for each of C tree nodes, or for each of K temperatures at one node.

        Args:
            logits: of the target or a drafter.
            temperature: `f32[B, 1]` or `f32[B, C]`; with `C = 1` also `f32[B, K]`.
            seen: the tokens of the text at each node; None without a repetition penalty.
            tokens: of the logits, if they are not of all tokens.
        """
        if tokens is None:
            logits = resize_vocabulary(logits, self.vocab_size)
        elif seen is not None:
            seen = seen[..., tokens]

        def per_node(parameter):
            return None if parameter is None else parameter[:, None]

        return log_probs(
            logits,
            temperature=temperature,
            top_k=self.top_k,
            top_p=per_node(self.top_p),
            min_p=per_node(self.min_p),
            repetition_penalty=per_node(self.repetition_penalty),
            seen=seen,
        )


def resize_vocabulary(logits: Float[Array, "B C V"], vocab_size: int) -> Float[Array, "B C N"]:
    """Logits over the target's vocabulary: cut, or padded with impossible tokens.

    Models that share a tokenizer may pad its vocabulary to different sizes.
    """
    num_missing = max(0, vocab_size - logits.shape[-1])
    logits = logits[..., :vocab_size].astype(jnp.float32)
    return jnp.pad(logits, ((0, 0), (0, 0), (0, num_missing)), constant_values=-jnp.inf)


def scatter_logits(
    logits: Float[Array, "B C R"], tokens: Int[Array, " R"], vocab_size: int
) -> Float[Array, "B C N"]:
    """Logits of some tokens over the whole vocabulary; the other tokens are impossible."""
    whole = jnp.full((*logits.shape[:-1], vocab_size), -jnp.inf, logits.dtype)
    return whole.at[..., tokens].set(logits)


def add_tokens(seen: Bool[Array, "B C N"], tokens: Int[Array, "B C"]) -> Bool[Array, "B C N"]:
    """The tokens seen at each tree node, with one more token for each."""
    return seen | (jnp.arange(seen.shape[-1]) == tokens[..., None])
