"""Models without a cache of their own: any causal function, and look-up of n-grams in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gls_jax import checks
from gls_jax.decoding.model import LanguageModel

__all__ = ["from_function", "ngram_lookup"]


class Tokens(NamedTuple):
    """The tokens themselves, in the layout of a cache.

    Attributes:
        tokens: `i32[1, B, S]`.
        positions: `i32[1, B, S]`.
        length: `i32[B]`.
    """

    tokens: Int[Array, "1 B S"]
    positions: Int[Array, "1 B S"]
    length: Int[Array, " B"]


def from_function(fn: Callable[[Any, Array], Array], params: Any, vocab_size: int) -> LanguageModel:
    """A language model from any causal function; every call computes the whole text again.

    Each new token of a draft tree is evaluated on its own path: T calls of `fn` on `[B, S]` tokens
        for T of them.

    Args:
        fn: ``(params, tokens i32[B, T]) -> logits f[B, T, V]``, causal: logits at `t` do not depend
            on later tokens. Keep it one object: it is compiled once for each.
        params: pytree of arrays, given to `fn`.
        vocab_size: `V`.

    Raises:
        ValueError: no function, or no positive vocabulary.

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
    return LanguageModel(
        params, _Apply(_LastOf(fn)), _empty, checks.count(vocab_size, "vocab_size")
    )


def ngram_lookup(vocab_size: int, longest: int = 3) -> LanguageModel:
    """A drafter without a model: what followed the last time that the text went like this.

    It looks for the latest earlier place with the longest common ending, `longest` tokens at most,
    and is sure of the token that came next; where even the last token is new, it repeats it.
    (Prompt look-up decoding, Saxena 2023.)

    Args:
        vocab_size: `V`, of the target.
        longest: endings compared, in tokens.

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
    size = checks.count(vocab_size, "vocab_size")
    return LanguageModel((), _Apply(_Lookup(size, checks.count(longest, "longest"))), _empty, size)


def _empty(batch: int, length: int) -> Tokens:
    nothing = jnp.zeros((1, batch, length), jnp.int32)
    return Tokens(
        nothing, nothing + 0, jnp.zeros(batch, jnp.int32)
    )  # two buffers, so that both can be donated


@dataclasses.dataclass(frozen=True)
class _LastOf:
    """Logits of `fn` after the last of each row's `length` tokens."""

    fn: Callable

    def __call__(self, params, rows, length):
        return jnp.take_along_axis(self.fn(params, rows), (length - 1)[:, None, None], axis=1)[:, 0]


@dataclasses.dataclass(frozen=True)
class _Lookup:
    vocab_size: int
    longest: int

    def __call__(self, params, rows, length):
        size = rows.shape[1]
        place = jnp.arange(size)
        last = length[:, None] - 1
        same, common = jnp.ones(rows.shape, bool), jnp.zeros(rows.shape, jnp.int32)
        for back in range(self.longest):
            here = jnp.where(place >= back, jnp.roll(rows, back, axis=1), -1)
            there = jnp.take_along_axis(rows, jnp.maximum(last - back, 0), axis=1)
            same &= (here == there) & (last >= back)
            common += same.astype(jnp.int32)
        found = jnp.where(
            place < last, common * size + place, -1
        )  # the longest, and of these the latest
        best = jnp.argmax(found, axis=1)[:, None]
        known = jnp.take_along_axis(found, best, axis=1) >= size
        token = jnp.take_along_axis(rows, jnp.where(known, best + 1, last), axis=1)
        return jnp.where(jnp.arange(self.vocab_size) == token, 0.0, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`LanguageModel.apply` from ``next_logits(params, rows i32[B, S], length i32[B]) -> f[B, V]``."""

    next_logits: Callable

    def __call__(self, params, tokens, positions, mask, cache: Tokens):
        batch, count = tokens.shape
        slots = cache.length[:, None] + jnp.arange(count)
        rows = jnp.arange(batch)[:, None]
        all_tokens = cache.tokens[0].at[rows, slots].set(tokens, mode="drop")
        all_positions = cache.positions[0].at[rows, slots].set(positions, mode="drop")
        after = Tokens(all_tokens[None], all_positions[None], cache.length + count)
        size = all_tokens.shape[1]

        def one(column):
            slot, position = slots[:, column], positions[:, column]
            seen = jnp.arange(size) <= slot[:, None]
            if mask is not None:
                seen &= mask[:, column]
            # The path as a text of its own: each token it sees at its position.
            there = jnp.where(seen, all_positions, size)
            path = jnp.zeros_like(all_tokens).at[rows, there].set(all_tokens, mode="drop")
            return self.next_logits(params, path, position + 1)

        logits = jax.lax.map(one, jnp.arange(count))
        return jnp.moveaxis(logits, 0, 1), after
