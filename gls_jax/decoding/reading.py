"""A model reads tokens: one forward pass, with the logits of those that need them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax.decoding.model import LanguageModel

__all__ = ["Reading", "read"]


class Reading(NamedTuple):
    """What a model has read.

    Attributes:
        logits: `f[B, C, V]`, after each of the columns that were asked for.
        features: `f[B, T, W]`, what drafters observe; None if none does.
        cache: with the T tokens.
    """

    logits: Array
    features: Array | None
    cache: Any


def read(
    model: LanguageModel,
    tokens: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    mask: Bool[Array, "B T S"] | None,
    cache: Any,
    *,
    columns: Int[Array, "B C"] | None = None,
    layers: tuple[int, ...] = (),
) -> Reading:
    """Evaluate T tokens of each row in one forward pass.

    Args:
        model: the model.
        tokens, positions, mask, cache: see :class:`gls_jax.decoding.LanguageModel`.
        columns: which of the T tokens need logits; None is all.
        layers: which features are needed, static; the model must then have `hidden`.
    """
    if model.hidden is None or model.head is None:
        logits, cache = model.apply(model.params, tokens, positions, mask, cache)
        return Reading(logits=_columns(logits, columns), features=None, cache=cache)
    hidden, features, cache = model.hidden(model.params, tokens, positions, mask, cache, layers)
    logits = model.head(model.params, _columns(hidden, columns))
    return Reading(logits=logits, features=features if layers else None, cache=cache)


def _columns(values: Float[Array, "B T _"], columns: Int[Array, "B C"] | None) -> jax.Array:
    return values if columns is None else jnp.take_along_axis(values, columns[..., None], axis=1)
