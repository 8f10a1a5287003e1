"""The states of a drafter over whole texts, as it is used: some steps ahead of the target.

In decoding, the newest token of the text is read with the target's features before it; a drafted
token is read with the drafter's own state before it. *Step* `i` is the `i`-th token in such a
sequence. Training computes all steps at all positions of a text at once (the training-time test of
EAGLE-3, 2503.01840; HASS, 2408.15766).

At position `s` and step `i` the newest token of the text is at ``s - i + 1``. The tokens up to it
are read at step 1, and the token at ``s - i + j`` at step `j`. So step `i` attends to the keys of
step 1 at all positions up to ``s - i + 1``, and to one position of each later step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax.models.drafter.network import DrafterNetwork
from gls_jax.models.layer_stack import layer_tables
from gls_jax.models.layers import KeysValues

__all__ = ["unrolled_states"]


def unrolled_states(
    network: DrafterNetwork,
    tokens: Int[Array, "b t"],
    features: Float[Array, "b t w"],
    num_steps: int,
) -> list[Float[Array, "b t m"]]:
    """The states after each token at each step.

    Args:
        network: the drafter.
        tokens: the texts, from their beginning.
        features: of the target after each token.
        num_steps: how many steps, static.

    Returns:
        One `[B, T, M]` for each step. Step `i`, from 1, has no meaning at the first ``i - 1``
        positions.
    """
    num_layers = network.config.layers.num_layers
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    # The keys and values of all steps so far, for each layer.
    past: list[KeysValues | None] = [None] * num_layers
    states = network.observed_states(features)
    all_states = []
    for step in range(1, num_steps + 1):
        # The state before each token; nothing comes before the first.
        before = jnp.pad(states, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = network.joined(tokens, before)
        key_positions = jnp.tile(positions, (1, step))
        visible = jnp.broadcast_to(
            _visible(tokens.shape[1], step), (*x.shape[:2], x.shape[1] * step)
        )
        tables = layer_tables(network.config.layers, positions, key_positions, visible)
        is_local = network.config.layers.local_layers or (False,) * num_layers
        for layer, block in enumerate(network.blocks):
            kind = int(is_local[layer])
            rotation, visible_here = jax.tree.map(lambda table, kind=kind: table[kind], tables)
            earlier = past[layer]
            if earlier is None:
                earlier = _no_keys(network, x)
            x, new = block(x, rotation, visible_here, earlier)
            assert new is not None  # there is a past
            past[layer] = _joined_keys(earlier, new)
        states = x
        all_states.append(states)
    return all_states


def _visible(num_tokens: int, step: int) -> Bool[Array, "t keys"]:
    """Whether a token at this step sees each key of step 1, 2, ..., and of its own step."""
    query = jnp.arange(num_tokens)[:, None]
    key = jnp.arange(num_tokens)
    of_steps = [key <= query - step + 1]
    for earlier_step in range(2, step + 1):
        of_steps.append(key == query - step + earlier_step)
    return jnp.concatenate(of_steps, axis=-1)


def _no_keys(network: DrafterNetwork, x: Float[Array, "b t m"]) -> KeysValues:
    config = network.config.layers
    heads = (x.shape[0], config.num_kv_heads)
    return (
        jnp.zeros((*heads, config.head_dim, 0), x.dtype),
        jnp.zeros((*heads, 0, config.head_dim), x.dtype),
    )


def _joined_keys(earlier: KeysValues, new: KeysValues) -> KeysValues:
    keys = jnp.concatenate([earlier[0], new[0]], axis=-1)
    values = jnp.concatenate([earlier[1], new[1]], axis=-2)
    return keys, values
