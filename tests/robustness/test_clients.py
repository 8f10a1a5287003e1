"""Trees, sampling parameters, the engine and list codes: no finite input gives NaN or anything out of range."""

from functools import cache

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gls_jax import compression, decoding, races, schemes
from gls_jax.compression import list_code
from gls_jax.schemes import draft_tree
from tests.robustness.hostile import ROWS, few, logits, normalised

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEPTH, CHAINS, NUM_TOKENS = 3, 2, 4


@cache
def round_of(name):
    """One round on many rows: chains drafted from `log_p [DEPTH, N]` against `log_q [DEPTH + 1, N]`.

    Each depth has one distribution for all nodes.
    """
    scheme = schemes.get(name)
    num_chains = scheme.max_drafts or CHAINS

    def trial(key, log_p, log_q):
        tokens = jnp.zeros((num_chains, DEPTH), jnp.int32)
        for t in range(DEPTH):
            parents = draft_tree.chains(tokens).parents.reshape(num_chains, DEPTH)[:, t]
            indices = draft_tree.chain_draft_index(tokens, ranked=scheme.ranked)[:, t]
            drafts = []
            for parent, index in zip(parents, indices, strict=True):
                node_key = scheme.draft_key(key, 0, t, parent)
                drafts.append(scheme.propose(node_key, log_p[t], num_chains)[index])
            tokens = tokens.at[:, t].set(jnp.stack(drafts))
        tree = draft_tree.chains(tokens, ranked=scheme.ranked)
        rows_q = log_q[jnp.append(0, tree.depths + 1)]
        return tree, scheme.verify_tree(key, 0, tree, log_p[tree.depths], rows_q)

    return jax.jit(jax.vmap(trial))


@pytest.mark.parametrize("name", ["gls", "gumbel_topk", "specinfer_wor", *schemes.PATH_NAMES])
@few
@given(log_probs=logits((2, ROWS, DEPTH + 1, NUM_TOKENS)), seed=st.integers(0, 2**32 - 1))
def test_trees_give_paths_of_possible_tokens(name, log_probs, seed):
    log_p, log_q = np.float32(normalised(log_probs))
    equal = slice(0, ROWS // 4)  # p = q
    log_q[equal, :DEPTH] = log_p[equal, :DEPTH]
    keys = jax.random.split(jax.random.key(seed), ROWS)
    tree, path = jax.tree.map(np.asarray, round_of(name)(keys, log_p[:, :DEPTH], log_q))
    row = np.arange(ROWS)
    assert ((path.length >= 0) & (path.length <= DEPTH)).all()
    is_on_path = np.arange(DEPTH) < path.length[:, None]
    assert ((path.nodes >= 0) == is_on_path).all() and path.nodes.max() < CHAINS * DEPTH
    assert ((path.token >= 0) & (path.token < NUM_TOKENS)).all()
    assert (log_q[row, path.length, path.token] >= races.LIGHTEST).all()
    for depth in range(DEPTH):  # what is accepted is a draft, possible under both distributions
        token = tree.tokens[row, np.maximum(path.nodes[:, depth], 0)]
        for either in (log_p, log_q):
            is_possible = either[row, depth, token] >= races.LIGHTEST
            assert is_possible[path.length > depth].all()
    assert (path.length[equal] == DEPTH).all()


SAMPLING = [
    {},
    {"top_k": 3},
    {"top_p": 0.7},
    {"top_k": 3, "top_p": 0.7, "min_p": 0.1},
    {"repetition_penalty": 1e3, "min_p": 1.0},
]


@cache
def processor(which, dtype):
    options = dict(SAMPLING[which])
    if "repetition_penalty" in options:
        options["seen"] = np.arange(5) % 2 == 0

    def process(logits, temperature):
        return decoding.log_probs(logits.astype(dtype), temperature=temperature, **options)

    return jax.jit(process)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", range(len(SAMPLING)))
@few
@given(
    raw=logits((ROWS, 5)),
    temperatures=st.lists(st.sampled_from([0, 1e-6, 0.7, 1, 1e29]), min_size=ROWS, max_size=ROWS),
)
def test_sampling_parameters_give_log_probabilities(which, dtype, raw, temperatures):
    process = processor(which, dtype)
    log_probs = np.asarray(process(jnp.asarray(raw, jnp.float32), np.float32(temperatures)))
    assert log_probs.dtype == np.float32
    assert not np.isnan(log_probs).any() and (log_probs <= 0).all()
    np.testing.assert_allclose(np.exp(np.float64(log_probs)).sum(-1), 1, atol=1e-6)
    assert np.isneginf(log_probs[np.isneginf(raw)]).all()
    is_greedy = np.array(temperatures) == 0
    assert ((log_probs == 0).sum(-1)[is_greedy] == 1).all()


def read(params, tokens):
    return params[tokens]


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        ("gls", {"num_drafts": 2, "draft_length": 2}),
        ("gumbel_topk", {"tree": decoding.MarginTree(6, 2)}),
    ],
)
@hypothesis.settings(few, max_examples=4)
@given(tables=logits((2, 5, 5)), seed=st.integers(0, 2**32 - 1))
def test_generation_emits_possible_tokens(scheme, shape, tables, seed):
    """Bigram models whose logits are 1e4 apart or impossible."""
    target, drafter = (
        decoding.from_function(read, jnp.asarray(table, jnp.float32), 5) for table in tables
    )
    prompts = [[0], [1, 2], [4, 3, 2]]
    options = {"max_new_tokens": 6, "scheme": scheme, **shape}
    generation = decoding.generate(jax.random.key(seed), target, drafter, prompts, **options)
    assert (generation.lengths == 6).all()
    for prompt, text in zip(prompts, np.asarray(generation.tokens).tolist(), strict=True):
        for previous, token in zip([prompt[-1], *text], text, strict=False):
            assert 0 <= token < 5
            assert normalised(tables[0])[previous, token] >= races.LIGHTEST


@cache
def matches():
    def match(key, weights, decoders, bins):
        return compression.match(races.exponentials(key, 3, 6), weights, decoders, bins)

    return jax.jit(jax.vmap(match))


@few
@given(rows=logits((2, ROWS, 6)), decoders=logits((ROWS, 3, 6)), seed=st.integers(0, 2**32 - 1))
def test_matching_stays_within_the_bin(rows, decoders, seed):
    weights = rows[0]
    keys = jax.random.split(jax.random.key(seed), ROWS)
    bins = np.random.default_rng(seed).integers(0, 3, (ROWS, 6))
    match = matches()(keys, np.float32(weights), np.float32(decoders), bins)
    match = jax.tree.map(np.asarray, match)
    row = np.arange(ROWS)
    assert ((match.sent >= 0) & (match.sent < 6)).all()
    assert np.isfinite(weights[row, match.sent]).all()
    np.testing.assert_array_equal(match.message, bins[row, match.sent])
    # [row, decoder, candidate]: what a decoder may select.
    is_allowed = (bins == match.message[:, None])[:, None] & np.isfinite(decoders)
    has_none = match.received < 0
    np.testing.assert_array_equal(has_none, ~is_allowed.any(-1))
    received = np.maximum(match.received, 0)[..., None]
    is_received_allowed = np.take_along_axis(is_allowed, received, -1)[..., 0]
    assert is_received_allowed[~has_none].all()
    assert (match.matched == (match.received == match.sent[:, None]).any(1)).all()
    assert np.isfinite(match.bound).all()
    assert (match.bound >= 0).all() and (match.bound <= 1 + 1e-5).all()


@pytest.mark.parametrize("search", list_code.SEARCHES)
@few
@given(data=st.data())
def test_list_codes_stay_within_the_bin(search, data):
    """Means far outside of all candidates, variances from next to nothing to next to one."""
    code = compression.ListCode(num_decoders=2, num_candidates=50, num_bins=4, search=search)
    mean = st.floats(-1e4, 1e4, width=32) | st.floats(-2, 2, width=32)
    log_variance = st.floats(-6, -1e-3)

    def column(numbers):
        return np.array(data.draw(st.lists(numbers, min_size=ROWS, max_size=ROWS)))[:, None]

    source, side = (
        compression.Normal(np.float32(column(mean)), np.float32(10.0 ** column(log_variance)))
        for _ in range(2)
    )
    keys = compression.symbol_keys(jax.random.key(data.draw(st.integers(0, 2**32 - 1))), ROWS)
    sent = compression.encode(code, keys, compression.gaussian_density, (), source)
    assert ((sent.index >= 0) & (sent.index < 50)).all()
    assert ((sent.message >= 0) & (sent.message < 4)).all()
    bins = jax.vmap(lambda key: races.bins(key, jnp.arange(50), 4))(keys)
    is_in_bin = np.asarray(bins == sent.message[:, None])
    for decoder in range(2):
        decoded = compression.decode(
            code, keys, sent.message, decoder, compression.gaussian_density, (), side
        )
        assert is_in_bin[np.arange(ROWS), decoded.index].all() and (decoded.index >= 0).all()
        assert np.isfinite(decoded.candidate).all()
