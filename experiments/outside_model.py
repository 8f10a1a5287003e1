"""An example: a Flax module that knows nothing of this library, brought to `decoding.generate`.

Run it by ``python -m experiments.outside_model``. The module keeps a cache of keys and values. All
that is needed is :class:`Cache` and the two functions inside :func:`bring`.
"""

from __future__ import annotations

from functools import partial
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
        """Return logits, and keys and values with those of the new tokens.

        `write(old, new)` puts the new ones into the cache slots of their tokens; `allowed[b, t, s]`
        says whether token `t` may read cache slot `s`.
        """
        x = self.embed(tokens) + self.positions(positions)
        query, new_keys, new_values = jnp.split(self.qkv(x), 3, axis=-1)
        keys = write(keys, new_keys)
        values = write(values, new_values)
        scores = jnp.einsum("btm,bsm->bts", query, keys) / x.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
        return self.out(x + weights @ values), keys, values


class Cache(NamedTuple):
    """The cache that `decoding` expects: a field `length`, and leaves `[layers, B, S, ...]`."""

    keys: jax.Array
    values: jax.Array
    length: jax.Array


def bring(model: Outside, vocab: int, width: int) -> decoding.LanguageModel:
    """The module as a model adapter: parameters and pure functions."""
    graph, params = nnx.split(model)

    def apply(params, tokens, positions, mask, cache: Cache):
        batch, num_new = tokens.shape
        num_slots = cache.keys.shape[2]
        # New tokens go after those that the cache has, in the order in which they are given.
        slots = cache.length[:, None] + jnp.arange(num_new)
        rows = jnp.arange(batch)[:, None]

        def write(old, new):
            return old.at[rows, slots].set(new, mode="drop")

        # A token may read the filled slots, and the new ones up to its own. A tree of drafts has
        # a mask too, so that branches do not see one another.
        allowed = jnp.arange(num_slots) <= slots[..., None]
        if mask is not None:
            allowed = allowed & mask
        module = nnx.merge(graph, params)
        logits, keys, values = module(
            tokens, positions, cache.keys[0], cache.values[0], allowed, write
        )
        return logits, Cache(keys=keys[None], values=values[None], length=cache.length + num_new)

    def init_cache(batch: int, length: int) -> Cache:
        zeros = jnp.zeros((1, batch, length, width))
        return Cache(keys=zeros, values=zeros, length=jnp.zeros(batch, jnp.int32))

    return decoding.LanguageModel(params, apply, init_cache, vocab)


def main() -> None:
    """Generate with eight chains of drafts and without: the same text, in fewer rounds."""
    target = bring(Outside(50, 32, nnx.Rngs(0)), vocab=50, width=32)
    generate = partial(
        decoding.generate,
        races.new_key(0),
        target,
        prompts=[[3, 1, 4], [1, 5]],
        scheme="gumbel_topk",
        max_new_tokens=24,
        temperature=0.3,
    )
    drafted = generate(target, num_drafts=8)
    plain = generate(None)
    print(f"the same text: {bool((drafted.tokens == plain.tokens).all())}")
    print(f"rounds: {drafted.metrics.rounds} against {plain.metrics.rounds}")


if __name__ == "__main__":
    main()
