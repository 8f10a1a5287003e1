"""The drafter's network: with its cache against whole texts, and with a reduced output head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gls_jax import models
from gls_jax.models import drafter
from gls_jax.models.drafter.unrolled import unrolled_states

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = dict(vocab_size=31, hidden_size=12, intermediate_size=20, num_heads=2, num_kv_heads=1)
CONFIGS = {
    "llama": models.Config(**SIZES, num_layers=2),
    "gemma": models.Config(
        **SIZES,
        num_layers=2,
        family="gemma2",
        local_layers=(True, False),
        window=3,
        norm_offset=1.0,
        post_norms=True,
        attention_softcap=5.0,
        logit_softcap=5.0,
    ),
}
LENGTH, PATH = 7, 3  # tokens of the text, and drafts
TOKENS = np.random.default_rng(0).integers(0, 31, (2, LENGTH + PATH)).astype(np.int32)
FEATURES = np.random.default_rng(1).standard_normal((2, LENGTH + PATH, 24)).astype(np.float32)


@pytest.fixture(params=CONFIGS)
def network(request):
    config = drafter.DrafterConfig(CONFIGS[request.param], (0, 3), num_tokens=9)
    graph, params = nnx.split(drafter.DrafterNetwork(config, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params))


def read(network, cache, first, last, mask=None, tokens=TOKENS):
    positions = np.broadcast_to(np.arange(first, last), (2, last - first))
    return network.read(jnp.asarray(tokens[:, first:last]), jnp.asarray(positions), mask, cache)


@pytest.mark.parametrize("chunk", [1, 3, LENGTH])
def test_states_with_the_cache_are_those_of_whole_texts(network, chunk):
    """The text in chunks, then drafts one by one; the text ends at every position in turn."""
    expected = unrolled_states(network, jnp.asarray(TOKENS), jnp.asarray(FEATURES), PATH + 1)
    cache = drafter.drafter_model(network, jnp.arange(9)).init_cache(2, LENGTH + PATH + 2)
    cache = network.observe(
        cache, jnp.asarray(FEATURES[:, : LENGTH - 1]), jnp.zeros(2, int), jnp.full(2, LENGTH - 1)
    )
    for first in range(0, LENGTH, chunk):
        last = min(first + chunk, LENGTH)
        states, cache = read(network, cache, first, last)
        np.testing.assert_allclose(states, expected[0][:, first:last], atol=3e-4)
    for step in range(1, PATH + 1):
        newest = LENGTH - 1 + step
        states, cache = read(network, cache, newest, newest + 1)
        np.testing.assert_allclose(states[:, 0], expected[step][:, newest], atol=3e-4)

    # The drafts become text: they are read again, with features, and more is drafted.
    cache = network.observe(
        cache._replace(length=jnp.full(2, LENGTH)),
        jnp.asarray(FEATURES[:, LENGTH - 1 : LENGTH + 1]),
        jnp.full(2, LENGTH - 1),
        jnp.full(2, LENGTH + 1),
    )
    states, cache = read(network, cache, LENGTH, LENGTH + 2)
    np.testing.assert_allclose(states, expected[0][:, LENGTH : LENGTH + 2], atol=3e-4)
    states, _ = read(network, cache, LENGTH + 2, LENGTH + 3)
    np.testing.assert_allclose(states[:, 0], expected[1][:, LENGTH + 2], atol=3e-4)


def test_nodes_of_a_tree_are_those_of_their_paths(network):
    """Two children of the text's last token, and a child of each; siblings are read side by side."""
    num_slots = LENGTH + 4
    cache = drafter.drafter_model(network, jnp.arange(9)).init_cache(2, num_slots)
    cache = network.observe(
        cache, jnp.asarray(FEATURES[:, : LENGTH - 1]), jnp.zeros(2, int), jnp.full(2, LENGTH - 1)
    )
    _, cache = read(network, cache, 0, LENGTH)
    nodes = np.random.default_rng(2).integers(0, 31, (2, 4)).astype(np.int32)
    visible = np.zeros((2, 4, num_slots), bool)
    visible[:, :, :LENGTH] = True
    for node, path in enumerate([[0], [1], [0, 2], [1, 3]]):
        visible[:, node, [LENGTH + other for other in path]] = True
    tree_states = []
    for level in range(2):
        columns = slice(2 * level, 2 * level + 2)
        positions = jnp.full((2, 2), LENGTH + level)
        mask = jnp.asarray(visible[:, columns])
        states, cache = network.read(jnp.asarray(nodes[:, columns]), positions, mask, cache)
        tree_states.append(states)
    for branch in range(2):
        text = np.concatenate([TOKENS[:, :LENGTH], nodes[:, [branch, branch + 2]]], axis=1)
        features = jnp.asarray(FEATURES[:, : LENGTH + 2])
        expected = unrolled_states(network, jnp.asarray(text), features, 3)
        for level in range(2):
            np.testing.assert_allclose(
                tree_states[level][:, branch], expected[level + 1][:, LENGTH + level], atol=3e-4
            )
