"""The decoder against a slow float64 forward pass; its cache and mask against runs without."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gls_jax.decoding import cache as caches
from gls_jax.models import layer_stack, layers
from tests.models.tiny_checkpoint import paths_from_root

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Few shapes, because each one is compiled: three rows, 16 cache slots, 4, 8 or 12 tokens a call.
TOKENS = np.random.default_rng(1).integers(0, 61, (3, 12)).astype(np.int32)
SLOTS = 16
# Float32 against float64 over four layers of weights of order one: observed errors are below 2e-5.
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def forward(tiny):
    return functools.partial(tiny.run, tiny.model)


@pytest.fixture(scope="module")
def whole(tiny):
    """Logits of `TOKENS` by the slow forward pass."""
    return np.stack([tiny.slow_logits(tiny.tensors, tiny.fields, row) for row in TOKENS])


def test_agrees_with_slow_forward(forward, whole):
    logits, cache = forward(TOKENS)
    assert logits.dtype == jnp.float32 and cache is None
    close(logits, whole)


def test_tied_head_is_the_embedding(tiny):
    fields = tiny.fields | {"tie_word_embeddings": True}
    tensors = tiny.random_tensors(fields, seed=2)
    logits, _ = tiny.run(tiny.build(tensors, fields), TOKENS)
    close(logits[0], tiny.slow_logits(tensors, fields, TOKENS[0]))


def test_linear_rope_scaling_stretches_positions(tiny, whole):
    scaled = tiny.build(
        tiny.tensors, tiny.fields | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    )
    close(tiny.run(scaled, TOKENS, np.tile(4 * np.arange(12), (3, 1)))[0], whole)


@pytest.mark.parametrize("chunks", [(1,) * 12, (8, 4), (12,)])
def test_cached_in_chunks_equals_uncached(tiny, forward, whole, chunks):
    cache = tiny.model.init_cache(3, SLOTS)
    chunk_logits = []
    start = 0
    for size in chunks:
        logits, cache = forward(TOKENS[:, start : start + size], cache=cache)
        chunk_logits.append(logits)
        start += size
    assert cache.length.tolist() == [12, 12, 12]
    close(jnp.concatenate(chunk_logits, 1), whole)


@pytest.mark.parametrize("least", [1, 4])
def test_attention_covers_all_filled_slots(monkeypatch, tiny, whole, least):
    """With sizes of 1, 2, 4, 8 and 16 slots, or of 4 to 16, every length is at or next to one of them."""
    monkeypatch.setattr(layer_stack, "_LEAST_ATTENDED", least)
    step = jax.jit(lambda model, tokens, cache: model(tokens, cache=cache))
    cache = tiny.model.init_cache(3, SLOTS)
    for position in range(12):
        logits, cache = step(tiny.model, TOKENS[:, position : position + 1], cache)
        close(logits[:, 0], whole[:, position])
    # Rows of different lengths: the longest decides. A size too small would lose a row's tokens.
    lengths = np.array([2, 9, 5])
    cache = cache._replace(length=jnp.asarray(lengths, jnp.int32))
    logits, _ = step(tiny.model, TOKENS[np.arange(3), lengths][:, None], cache)
    close(logits[:, 0], whole[np.arange(3), lengths])


def test_layers_in_a_loop_are_those_one_after_the_other(monkeypatch, tiny):
    """Logits, cache, features and gradients, for 1, 3 and 6 tokens."""
    model = tiny.model
    graph, params = nnx.split(model)

    def results(tokens, least):
        monkeypatch.setattr(layer_stack, "_LEAST_LOOP", least)

        def outputs(params):
            cache = model.init_cache(1, SLOTS)
            hidden, features, cache = nnx.merge(graph, params).hidden(
                tokens, cache=cache, feature_layers=(0, 3)
            )
            return hidden, features, cache.keys, cache.values

        def total(params):
            return sum(jnp.sum(jnp.sin(x)) for x in outputs(params))

        return jax.jit(outputs)(params), jax.jit(jax.grad(total))(params)

    for count in (1, 3, 6):
        tokens = jnp.asarray(TOKENS[:1, :count])
        looped, unrolled = results(tokens, least=1), results(tokens, least=100)
        for one, other in zip(jax.tree.leaves(looped), jax.tree.leaves(unrolled), strict=True):
            scale = float(jnp.max(jnp.abs(other))) + 1e-6
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


def test_rows_of_different_length_share_a_batch(tiny, forward, whole):
    # Prefill with padding on the right, then set the true lengths: the padding is overwritten and
    # never seen.
    lengths = np.array([3, 8, 5])
    _, cache = forward(TOKENS[:, :8], cache=tiny.model.init_cache(3, SLOTS))
    cache = cache._replace(length=jnp.asarray(lengths, jnp.int32))
    rows, following = np.arange(3)[:, None], lengths[:, None] + np.arange(4)
    logits, cache = forward(TOKENS[rows, following], cache=cache)
    close(logits, whole[rows, following])
    assert cache.length.tolist() == (lengths + 4).tolist()


def test_tree_under_a_mask_equals_its_paths(tiny, forward):
    # A tree of eight nodes after prefixes of 4, 2 and 3 tokens. Siblings share a position, and nodes
    # see their ancestors.
    paths = paths_from_root([None, 0, 0, 1, 1, 2, 5, 4])
    nodes, lengths = np.arange(40, 48, dtype=np.int32), np.array([4, 2, 3])
    _, cache = forward(TOKENS[:, :4], cache=tiny.model.init_cache(3, SLOTS))
    cache = cache._replace(length=jnp.asarray(lengths, jnp.int32))
    mask = np.zeros((3, 8, SLOTS), bool)
    for row, length in enumerate(lengths):
        mask[row, :, :length] = True
        for node, path in enumerate(paths):
            mask[row, node, [length + step for step in path]] = True
    positions = lengths[:, None] + np.array([len(path) - 1 for path in paths])
    logits, cache = forward(np.tile(nodes, (3, 1)), positions, mask, cache)
    assert cache.length.tolist() == (lengths + 8).tolist()
    for row, length in enumerate(lengths):
        for node, path in enumerate(paths):
            text = [*TOKENS[row, :length], *nodes[path]]
            close(logits[row, node], tiny.slow_logits(tiny.tensors, tiny.fields, text)[-1])

    # As the engine does next: keys and values of one path move to the slots after the text, all
    # others are discarded.
    path = paths[6]
    start = jnp.asarray(lengths, jnp.int32)
    cache = caches.keep(cache, start[:, None] + jnp.array(path), start, jnp.full(3, len(path)))
    assert cache.length.tolist() == [length + len(path) for length in lengths]
    logits, _ = forward(TOKENS[:, 8:], cache=cache)
    for row, length in enumerate(lengths):
        text = [*TOKENS[row, :length], *nodes[path], *TOKENS[row, 8:]]
        close(logits[row], tiny.slow_logits(tiny.tensors, tiny.fields, text)[-4:])


def test_mask_without_cache(tiny, forward):
    # Two texts side by side: neither sees the other.
    mask = np.kron(np.eye(2), np.tril(np.ones((6, 6)))).astype(bool)
    logits, _ = forward(TOKENS, np.tile([*range(6), *range(6)], (3, 1)), np.tile(mask, (3, 1, 1)))
    for text in (slice(0, 6), slice(6, 12)):
        close(logits[0, text], tiny.slow_logits(tiny.tensors, tiny.fields, TOKENS[0, text]))


def test_tokens_beyond_the_cache_change_no_slot(tiny, forward):
    _, cache = forward(TOKENS, cache=tiny.model.init_cache(3, SLOTS))
    _, full = forward(TOKENS[:, :4], cache=cache)
    _, over = forward(TOKENS[:, :8], cache=cache)
    assert (full.length.tolist(), over.length.tolist()) == ([16] * 3, [20] * 3)
    close(over.keys, full.keys)


def test_a_token_that_sees_nothing_stays_finite(forward):
    logits, _ = forward(TOKENS, np.tile(np.arange(12), (3, 1)), np.zeros((3, 12, 12), bool))
    assert np.isfinite(logits).all()


def test_a_token_outside_the_vocabulary_makes_only_its_row_nan(forward):
    tokens = TOKENS.copy()
    tokens[1, 4] = 61
    logits, _ = forward(tokens)
    assert np.isnan(logits[1, 4:]).all()
    np.testing.assert_array_equal(logits[::2], forward(TOKENS)[0][::2])


def test_donated_cache_and_no_second_compilation(tiny, whole):
    graph, params = nnx.split(tiny.model)
    step = jax.jit(
        lambda params, tokens, cache: nnx.merge(graph, params)(tokens, cache=cache),
        donate_argnums=2,
    )
    cache = tiny.model.init_cache(3, SLOTS)
    for at in range(3):
        old = cache
        logits, cache = step(params, jnp.asarray(TOKENS[:, at : at + 1]), cache)
        assert old.keys.is_deleted() and old.values.is_deleted()
    assert step._cache_size() == 1
    close(logits[:, 0], whole[:, 2])


@pytest.mark.parametrize("shape", [(1, 300), (1, 1, 300), (3, 1, 300), (2, 3, 300), (40, 300)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_accumulated_in_float32(shape, dtype):
    """Rows are filled up to sizes that are fast: 1 to 2 in bfloat16, 6 to 8."""
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=size), dtype) for size in (shape, (7, 300)))
    product = layers.matrix_product(x, weight)
    assert product.dtype == jnp.float32 and product.shape == (*shape[:-1], 7)
    expected = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    # Sums of 300 products of order one; rounding each of them to bfloat16 would give 0.05.
    np.testing.assert_allclose(product, expected, rtol=0, atol=2e-4)


def test_bfloat16_weights_give_float32_logits(tiny, whole):
    model = tiny.build(tiny.tensors, tiny.fields, dtype=jnp.bfloat16)
    logits, cache = tiny.run(model, TOKENS, cache=model.init_cache(3, SLOTS))
    assert logits.dtype == jnp.float32 and cache.keys.dtype == jnp.bfloat16
    # Eight bits of mantissa: near, but not equal, which shows that the weights were rounded.
    probs = jax.nn.softmax(logits)
    exact_probs = jax.nn.softmax(jnp.asarray(whole, jnp.float32))
    distances = jnp.abs(probs - exact_probs).sum(-1)
    assert 1e-4 < float(jnp.median(distances)) < 0.2


@pytest.mark.parametrize(
    ("tokens", "positions", "mask", "rows", "word"),
    [
        (np.zeros(4, np.int32), None, None, 0, "tokens"),
        (np.zeros((1, 4), np.float32), None, None, 0, "tokens"),
        (np.zeros((1, 0), np.int32), None, None, 0, "tokens"),
        (np.zeros((1, 4), np.int32), np.arange(4), None, 0, "positions"),
        (np.zeros((1, 4), np.int32), None, np.ones((1, 4, 5), bool), 0, "mask"),
        (np.zeros((1, 4), np.int32), None, np.ones((1, 4, 4)), 0, "mask"),
        (np.zeros((1, 4), np.int32), None, np.ones((1, 4, 4), bool), 1, "mask"),
        (np.zeros((1, 4), np.int32), None, None, 2, "cache"),
        (np.zeros((1, 9), np.int32), None, None, 1, "cache"),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(tiny, tokens, positions, mask, rows, word):
    cache = tiny.model.init_cache(rows, 8) if rows else None
    tokens = jnp.asarray(tokens)
    positions = None if positions is None else jnp.asarray(positions)
    mask = None if mask is None else jnp.asarray(mask)
    with pytest.raises(ValueError, match=rf"^{word}: expected .* got ") as caught:
        tiny.model(tokens, positions, mask, cache)
    assert "\n" not in str(caught.value)
