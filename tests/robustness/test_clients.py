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

DEPTH, CHAINS, ITEMS = 3, 2, 4


@cache
def round_of(name):
    """One round on many rows: chains drafted from `log_p [DEPTH, N]`, a law a depth, against `log_q [DEPTH + 1, N]`."""
    scheme = schemes.get(name)
    width = scheme.max_drafts or CHAINS

    def trial(key, log_p, log_q):
        tokens = jnp.zeros((width, DEPTH), jnp.int32)
        for t in range(DEPTH):
            contexts = draft_tree.chains(tokens).parents.reshape(width, DEPTH)[:, t]
            slots = draft_tree.chain_draft_index(tokens, ranked=scheme.ranked)[:, t]
            keys = [scheme.draft_key(key, 0, t, context) for context in contexts]
            drafts = [
                scheme.propose(k, log_p[t], width)[slot]
                for k, slot in zip(keys, slots, strict=True)
            ]
            tokens = tokens.at[:, t].set(jnp.stack(drafts))
        drafts = draft_tree.chains(tokens, ranked=scheme.ranked)
        path = scheme.verify_tree(
            key, 0, drafts, log_p[drafts.depths], log_q[jnp.append(0, drafts.depths + 1)]
        )
        return drafts, path

    return jax.jit(jax.vmap(trial))


@pytest.mark.parametrize("name", ["gls", "gumbel_topk", "specinfer_wor", *schemes.PATH_NAMES])
@few
@given(laws=logits((2, ROWS, DEPTH + 1, ITEMS)), seed=st.integers(0, 2**32 - 1))
def test_trees(name, laws, seed):
    log_p, log_q = np.float32(normalised(laws))
    log_q[: ROWS // 4, :DEPTH] = log_p[: ROWS // 4, :DEPTH]
    keys = jax.random.split(jax.random.key(seed), ROWS)
    drafts, path = jax.tree.map(np.asarray, round_of(name)(keys, log_p[:, :DEPTH], log_q))
    row = np.arange(ROWS)
    assert ((path.length >= 0) & (path.length <= DEPTH)).all()
    assert (
        (path.nodes >= 0) == (np.arange(DEPTH) < path.length[:, None])
    ).all() and path.nodes.max() < CHAINS * DEPTH
    assert ((path.token >= 0) & (path.token < ITEMS)).all()
    assert (log_q[row, path.length, path.token] >= races.LIGHTEST).all()
    for depth in range(DEPTH):  # what is accepted is a draft, possible under both laws
        token = drafts.tokens[row, np.maximum(path.nodes[:, depth], 0)]
        for law in (log_p, log_q):
            assert (law[row, depth, token] >= races.LIGHTEST)[path.length > depth].all()
    assert (path.length[: ROWS // 4] == DEPTH).all()  # p = q


SAMPLING = [
    {},
    {"top_k": 3},
    {"top_p": 0.7},
    {"top_k": 3, "top_p": 0.7, "min_p": 0.1},
    {"repetition_penalty": 1e3, "min_p": 1.0},
]


@cache
def processor(which, dtype):
    seen = np.arange(5) % 2 == 0
    options = SAMPLING[which] | ({"seen": seen} if "repetition_penalty" in SAMPLING[which] else {})
    return jax.jit(
        lambda found, t: decoding.log_probs(found.astype(dtype), temperature=t, **options)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", range(len(SAMPLING)))
@few
@given(
    found=logits((ROWS, 5)),
    temperatures=st.lists(st.sampled_from([0, 1e-6, 0.7, 1, 1e29]), min_size=ROWS, max_size=ROWS),
)
def test_sampling_parameters(which, dtype, found, temperatures):
    law = np.asarray(
        processor(which, dtype)(jnp.asarray(found, jnp.float32), np.float32(temperatures))
    )
    assert law.dtype == np.float32 and not np.isnan(law).any() and (law <= 0).all()
    np.testing.assert_allclose(np.exp(np.float64(law)).sum(-1), 1, atol=1e-6)
    assert np.isneginf(law[np.isneginf(found)]).all()
    assert ((law == 0).sum(-1)[np.array(temperatures) == 0] == 1).all()


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
def test_generation(scheme, shape, tables, seed):
    """Bigram models whose logits are 1e4 apart or impossible."""
    target, drafter = (
        decoding.from_function(read, jnp.asarray(table, jnp.float32), 5) for table in tables
    )
    ask = {"max_new_tokens": 6, "scheme": scheme, **shape}
    found = decoding.generate(
        jax.random.key(seed), target, drafter, [[0], [1, 2], [4, 3, 2]], **ask
    )
    assert (found.lengths == 6).all()
    for start, text in zip((0, 2, 2), np.asarray(found.tokens).tolist(), strict=True):
        for before, token in zip([start, *text], text, strict=False):
            assert 0 <= token < 5 and normalised(tables[0])[before, token] >= races.LIGHTEST


@few
@given(rows=logits((2, ROWS, 6)), decoders=logits((ROWS, 3, 6)), seed=st.integers(0, 2**32 - 1))
def test_matching(rows, decoders, seed):
    keys = jax.random.split(jax.random.key(seed), ROWS)
    bins = np.random.default_rng(seed).integers(0, 3, (ROWS, 6))
    found = matches()(keys, np.float32(rows[0]), np.float32(decoders), bins)
    found = jax.tree.map(np.asarray, found)
    row = np.arange(ROWS)
    assert ((found.sent >= 0) & (found.sent < 6)).all() and np.isfinite(
        rows[0][row, found.sent]
    ).all()
    np.testing.assert_array_equal(found.message, bins[row, found.sent])
    inside = (bins == found.message[:, None])[:, None] & np.isfinite(
        decoders
    )  # [row, decoder, candidate]
    silent = found.received < 0
    np.testing.assert_array_equal(silent, ~inside.any(-1))
    assert np.take_along_axis(inside, np.maximum(found.received, 0)[..., None], -1)[..., 0][
        ~silent
    ].all()
    assert (found.matched == (found.received == found.sent[:, None]).any(1)).all()
    assert (
        np.isfinite(found.bound).all()
        and (found.bound >= 0).all()
        and (found.bound <= 1 + 1e-5).all()
    )


@cache
def matches():
    return jax.jit(
        jax.vmap(
            lambda key, w, v, bins: compression.match(races.exponentials(key, 3, 6), w, v, bins)
        )
    )


@pytest.mark.parametrize("search", list_code.SEARCHES)
@few
@given(data=st.data())
def test_list_codes(search, data):
    """Means far outside of all candidates, variances from next to nothing to next to one."""
    code = compression.ListCode(num_decoders=2, num_candidates=50, num_bins=4, search=search)
    numbers = st.lists(
        st.floats(-1e4, 1e4, width=32) | st.floats(-2, 2, width=32), min_size=ROWS, max_size=ROWS
    )
    spreads = st.lists(st.floats(-6, -1e-3), min_size=ROWS, max_size=ROWS)
    source, side = (
        compression.Normal(
            np.float32(data.draw(numbers))[:, None],
            np.float32(10.0 ** np.array(data.draw(spreads)))[:, None],
        )
        for _ in range(2)
    )
    keys = compression.symbol_keys(jax.random.key(data.draw(st.integers(0, 2**32 - 1))), ROWS)
    sent = compression.encode(code, keys, compression.gaussian_density, (), source)
    assert ((sent.index >= 0) & (sent.index < 50)).all() and (
        (sent.message >= 0) & (sent.message < 4)
    ).all()
    for decoder in range(2):
        got = compression.decode(
            code, keys, sent.message, decoder, compression.gaussian_density, (), side
        )
        inside = (
            jax.vmap(lambda key: races.bins(key, jnp.arange(50), 4))(keys) == sent.message[:, None]
        )
        assert np.asarray(inside)[np.arange(ROWS), got.index].all() and (got.index >= 0).all()
        assert np.isfinite(got.candidate).all()
