"""Models without a cache of activations: any causal function, and n-gram lookup in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from gls_jax import checks
from gls_jax.decoding.lookup import find_match
from gls_jax.decoding.model import LanguageModel

__all__ = ["from_function", "ngram_lookup"]


class Tokens(NamedTuple):
    """A cache that holds the tokens themselves.

    Attributes:
        tokens: `i32[1, B, S]`.
        positions: `i32[1, B, S]`.
        length: `i32[B]`.
    """

    tokens: Array
    positions: Array
    length: Array


def from_function(fn: Callable[[Any, Array], Array], params: Any, vocab_size: int) -> LanguageModel:
    """A language model from any causal function; every call computes the whole text again.

    Each new token of a draft tree is evaluated on the path to it, so T new tokens take T calls of
    `fn` on `[B, S]` tokens.

    Args:
        fn: ``(params, tokens i32[B, T]) -> logits f[B, T, V]``, causal: logits at `t` do not depend
            on later tokens. Keep it one object: it is compiled once for each.
        params: pytree of arrays, given to `fn`.
        vocab_size: `V`.

    Raises:
        ValueError: `fn` is not callable, or `vocab_size` is not positive.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> bigram = decoding.from_function(lambda params, tokens: params[tokens], jnp.eye(5), 5)
    >>> cache, text = bigram.init_cache(1, 4), jnp.array([[3, 1]])
    >>> logits, cache = bigram.apply(bigram.params, text, jnp.array([[0, 1]]), None, cache)
    >>> logits.argmax(-1).tolist()
    [[3, 1]]
    """
    if not callable(fn):
        raise ValueError(f"fn: expected a function of params and tokens, got {type(fn).__name__}")
    vocab_size = checks.count(vocab_size, "vocab_size")
    return LanguageModel(
        params=params,
        apply=_Apply(_LogitsAfterLast(fn)),
        init_cache=_empty_cache,
        vocab_size=vocab_size,
    )


def ngram_lookup(vocab_size: int, longest: int = 3) -> LanguageModel:
    """A drafter without a model: it proposes the token that followed an earlier match.

    It compares the tokens before each earlier position with the end of the text, and takes the
    position with the longest match, of at most `longest` tokens; the latest of several. The token
    after the match has probability 1. If even the last token is new, that token is repeated.
    (Prompt lookup decoding, Saxena 2023.)

    Args:
        vocab_size: `V`, of the target.
        longest: the most tokens of a match.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> lookup = decoding.ngram_lookup(9)
    >>> text = jnp.array([[5, 6, 7, 8, 5, 6]])
    >>> logits, _ = lookup.apply(
    ...     lookup.params, text, jnp.arange(6)[None], None, lookup.init_cache(1, 6)
    ... )
    >>> int(logits[0, -1].argmax())
    7
    """
    vocab_size = checks.count(vocab_size, "vocab_size")
    lookup = _Lookup(vocab_size, checks.count(longest, "longest"))
    return LanguageModel(
        params=(),
        apply=_Apply(lookup),
        init_cache=_empty_cache,
        vocab_size=vocab_size,
    )


def _empty_cache(batch: int, length: int) -> Tokens:
    zeros = jnp.zeros((1, batch, length), jnp.int32)
    # `zeros + 0` is a second buffer: the same one could not be donated twice.
    return Tokens(tokens=zeros, positions=zeros + 0, length=jnp.zeros(batch, jnp.int32))


@dataclasses.dataclass(frozen=True)
class _LogitsAfterLast:
    """Logits of `fn` after the last of each row's `length` tokens."""

    fn: Callable

    def __call__(self, params, texts, length):
        logits = self.fn(params, texts)
        return jnp.take_along_axis(logits, (length - 1)[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class _Lookup:
    """Logits 0 for the token that is looked up, and `-inf` for the others."""

    vocab_size: int
    longest: int

    def __call__(self, params, texts, length):
        match = find_match(texts, length, self.longest)
        next_position = jnp.where(match.length > 0, match.next_position, length - 1)[:, None]
        next_token = jnp.take_along_axis(texts, next_position, axis=1)
        return jnp.where(jnp.arange(self.vocab_size) == next_token, 0.0, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`LanguageModel.apply` from a function that gives the logits after whole texts.

    Attributes:
        next_logits: ``(params, texts i32[B, S], length i32[B]) -> f[B, V]``.
    """

    next_logits: Callable

    def __call__(self, params, tokens, positions, mask, cache: Tokens):
        batch, num_new = tokens.shape
        cache_slots = cache.length[:, None] + jnp.arange(num_new)
        rows = jnp.arange(batch)[:, None]
        # Requests that have ended may write past the end of the cache, where it is dropped.
        all_tokens = cache.tokens[0].at[rows, cache_slots].set(tokens, mode="drop")
        all_positions = cache.positions[0].at[rows, cache_slots].set(positions, mode="drop")
        num_cache_slots = all_tokens.shape[1]

        def logits_after(column):
            """Logits after one of the new tokens of each row."""
            cache_slot = cache_slots[:, column]
            position = positions[:, column]
            is_visible = jnp.arange(num_cache_slots) <= cache_slot[:, None]
            if mask is not None:
                is_visible &= mask[:, column]
            # The path to the token becomes a text: each visible token is written at its position.
            text_positions = jnp.where(is_visible, all_positions, num_cache_slots)
            texts = jnp.zeros_like(all_tokens)
            texts = texts.at[rows, text_positions].set(all_tokens, mode="drop")
            return self.next_logits(params, texts, position + 1)

        # One after the other, which bounds the memory to the logits of one text per row.
        logits = jax.lax.map(logits_after, jnp.arange(num_new))
        cache = Tokens(
            tokens=all_tokens[None],
            positions=all_positions[None],
            length=cache.length + num_new,
        )
        return jnp.moveaxis(logits, 0, 1), cache
