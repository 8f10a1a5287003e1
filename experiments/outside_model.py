"""An example: a Flax module with a cache that knows nothing of this library, brought to
`decoding.generate`.

``python -m experiments.outside_model``. What is needed is :class:`Cache` and the two functions of
:func:`bring`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gls_jax import decoding, races


class Outside(nnx.Module):
    """Somebody's model: one layer of attention over keys and values that the caller keeps."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocab, width, rngs=rngs)
        self.positions = nnx.Embed(256, width, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, vocab, rngs=rngs)

    def __call__(self, tokens, positions, keys, values, allowed, write):
        """Logits, and keys and values with those of the new tokens where `write` puts them."""
        x = self.embed(tokens) + self.positions(positions)
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        keys, values = write(keys, key), write(values, value)
        scores = jnp.einsum("btm,bsm->bts", query, keys) / x.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
        return self.out(x + weights @ values), keys, values


class Cache(NamedTuple):
    """The protocol: `length`, and leaves `[layers, B, S, ...]`."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def bring(model: Outside, vocab: int, width: int) -> decoding.LanguageModel:
    """The module as a bundle of pure functions."""
    graph, params = nnx.split(model)

    def apply(params, tokens, positions, mask, cache: Cache):
        size, rows = cache.keys.shape[2], jnp.arange(tokens.shape[0])[:, None]
        slots = cache.length[:, None] + jnp.arange(tokens.shape[1])
        seen = (
            jnp.arange(size) <= slots[..., None]
        )  # the filled slots, and the new ones up to one's own
        write = lambda old, new: old.at[rows, slots].set(new, mode="drop")  # noqa: E731
        allowed = seen if mask is None else seen & mask
        module = nnx.merge(graph, params)
        logits, keys, values = module(
            tokens, positions, cache.keys[0], cache.values[0], allowed, write
        )
        return logits, Cache(keys[None], values[None], cache.length + tokens.shape[1])

    def init_cache(batch: int, length: int) -> Cache:
        shape = (1, batch, length, width)
        return Cache(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(batch, jnp.int32))

    return decoding.LanguageModel(params, apply, init_cache, vocab)


def main() -> None:
    """Eight chains against plain generation: the same text, in fewer calls."""
    target = bring(Outside(50, 32, nnx.Rngs(0)), 50, 32)
    prompts, ask = (
        [[3, 1, 4], [1, 5]],
        dict(scheme="gumbel_topk", max_new_tokens=24, temperature=0.3),
    )
    fast = decoding.generate(races.new_key(0), target, target, prompts, num_drafts=8, **ask)
    plain = decoding.generate(races.new_key(0), target, None, prompts, **ask)
    print(f"the same text: {bool((fast.tokens == plain.tokens).all())}")
    print(f"rounds: {fast.metrics.rounds} against {plain.metrics.rounds}")


if __name__ == "__main__":
    main()
