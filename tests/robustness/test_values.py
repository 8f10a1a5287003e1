"""Whatever finite logits say: no NaN, no token out of range or of no probability, probabilities within [0, 1]."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gls_jax import bounds, couplings, decomposition, races, rejection, sampling, schemes
from gls_jax.exact import ratio_order
from gls_jax.schemes.function_types import TokenVerification
from tests.robustness.hostile import ROWS, SHAPES, few, problems

pytestmark = pytest.mark.usefixtures("quick_compilation")

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def lifted(function, shape):
    """`function(key, log_p, log_q)` on all rows of a problem, compiled once."""
    run = jax.jit(jax.vmap(function))

    def call(problem):
        with jax.enable_x64(shape.dtype == "float64"):
            return jax.tree.map(np.asarray, run(*problem))

    return call


def drawn(data, shape):
    with jax.enable_x64(shape.dtype == "float64"):
        keys, log_p, log_q = data.draw(problems(shape))
    return (keys, log_p, log_q), np.asarray(log_p, np.float64), np.asarray(log_q, np.float64)


def is_possible(tokens, probs):
    """Tokens `[ROWS, ...]` within the vocabulary, and of positive probability."""
    assert (
        np.issubdtype(tokens.dtype, np.integer)
        and tokens.min() >= 0
        and tokens.max() < probs.shape[-1]
    )
    probabilities_of_tokens = np.take_along_axis(probs, tokens.reshape(len(probs), -1), -1)
    assert (probabilities_of_tokens >= races.LIGHTEST).all()


def is_probability(values, slack):
    assert np.isfinite(values).all() and values.min() >= -slack and values.max() <= 1 + slack


@cache
def probabilities(shape):
    """All functions that give probabilities, in one program."""
    k = shape.drafts

    def every(key, log_p, log_q):
        rows = jnp.broadcast_to(log_p, (k, *log_p.shape))
        inside = jnp.cumsum(jnp.exp(log_p)[bounds.prefix_order(log_p, log_q)])
        matching = {
            "relaxed": bounds.list_matching_relaxed(log_p, log_q, k),
            "given target": bounds.list_matching_given_target(log_p, log_q, k),
        }
        values = matching | {
            "strong": bounds.list_matching_strong(log_p, log_q, 1, k),
            "matching": bounds.list_matching(log_p, log_q, k),
            "diverse": bounds.list_matching(rows, log_q, k),
            "optimum": bounds.optimum(log_p, log_q, inside),
            "iid": bounds.optimum_iid(log_p, log_q, k),
            "distinct": bounds.optimum_distinct(log_p, log_q, k),
            "communication free": bounds.communication_free(log_p, log_q),
            "total variation": bounds.total_variation(log_p, log_q),
            "gumbel": couplings.gumbel_match(log_p, log_q),
            "minhash": couplings.minhash_match(log_p, log_q),
            "maximal": couplings.maximal_match(log_p, log_q),
            "density": bounds.list_decoding(log_p - jnp.maximum(log_q, -1e4), k, 4),
        }
        order = ratio_order.ratio_order(
            *(
                log_probs.astype(jnp.promote_types(log_probs.dtype, jnp.float32))
                for log_probs in (log_p, log_q)
            )
        )
        return values, order, decomposition.always_accepts(log_p, log_q, k)

    return lifted(every, shape)


@each_shape
@few
@given(data=st.data())
def test_bounds_and_exact_matches(data, shape):
    problem, *_ = drawn(data, shape)
    values, order, certain = probabilities(shape)(problem)
    for value in values.values():
        is_probability(value, shape.slack)
    assert (values["relaxed"] <= values["given target"] + shape.slack).all()
    assert (values["matching"] <= values["iid"] + shape.slack).all()
    assert (values["iid"] <= values["distinct"] + shape.slack).all()
    assert (values["communication free"] <= values["minhash"] + shape.slack).all()
    assert (values["communication free"] <= values["gumbel"] + shape.slack).all()
    assert (values["gumbel"] <= values["maximal"] + shape.slack).all()
    assert (certain == (values["iid"] >= 1 - 1e-6))[abs(values["iid"] - (1 - 1e-6)) > 1e-7].all()
    assert (np.sort(order.order) == np.arange(shape.categories)).all() and not any(
        np.isnan(x).any() for x in order
    )
    assert (
        (np.diff(order.ratio) >= 0).all() and (order.excess >= 0).all() and (order.rise >= 0).all()
    )


@cache
def samples(shape):
    """All functions that sample, except for the schemes."""

    def every(key, log_p, log_q):
        dtype = jnp.promote_types(log_p.dtype, jnp.float32)
        weights_p, weights_q = (
            races.weights(log_probs.astype(dtype)) for log_probs in (log_p, log_q)
        )
        listed = sampling.list_sample(key, log_p, log_q, shape.drafts)
        (_, leaders), _ = races.first_arrivals(
            key, shape.drafts, log_p.astype(dtype), log_q.astype(dtype)
        )
        darts = couplings.weighted_minhash(key, log_p, log_q)
        dart_pair, bits = couplings.dart_protocol(key, log_p, log_q, 0.01)
        pairs = [
            couplings.gumbel(key, log_p, log_q),
            darts,
            couplings.maximal(key, log_p, log_q),
            dart_pair,
        ]
        rest, total = rejection.residual(weights_q, weights_p)
        rejection_tokens, found = rejection.recursive_rejection(
            key, listed.drafts, log_p.astype(dtype), log_q.astype(dtype), leaders >= 0
        )
        from_p = [listed.drafts, leaders, *(pair.x for pair in pairs)]
        from_q = [
            listed.target,
            rejection_tokens,
            *(pair.y for pair in pairs),
            rejection.residual_token(key, rest, log_q),
        ]
        from_q.append(rejection.maximal_coupling(key, listed.drafts[0], weights_p, log_q))
        return from_p, from_q, listed, found, bits, total

    return lifted(every, shape)


@each_shape
@few
@given(data=st.data())
def test_samples(data, shape):
    problem, log_p, log_q = drawn(data, shape)
    from_p, from_q, listed, found, bits, total = samples(shape)(problem)
    for tokens in from_p:
        is_possible(tokens, log_p)
    for tokens in from_q:
        is_possible(tokens, log_q)
    np.testing.assert_array_equal(listed.drafts, from_p[1])
    np.testing.assert_array_equal(listed.accepted, (listed.drafts == listed.target[:, None]).any(1))
    assert (found[:, 1:] >= found[:, :-1]).all() and (bits > 0).all()
    is_probability(total, shape.slack)


@cache
def scheme_calls(scheme, shape):
    """All functions of a scheme, in one program."""
    k = min(shape.drafts, scheme.max_drafts or shape.drafts)

    def every(key, log_p, log_q):
        drafts = scheme.propose(key, log_p, k)
        some = jax.random.bernoulli(jax.random.fold_in(key, 7), shape=(k,))
        active = jnp.stack([jnp.ones(k, bool), some, ~some])
        tokens = jax.vmap(partial(scheme.verify, key, drafts, log_p, log_q))(active)
        if scheme.trials is None:
            accepted = jnp.any(drafts == tokens[0])[None]
        else:
            accepted = scheme.accepted(key, log_p, log_q, k)
        bound = jnp.zeros(()) if scheme.exact.bound is None else scheme.exact.bound(log_p, log_q, k)
        return drafts, tokens, accepted, scheme.acceptance(log_p, log_q, k), bound

    return lifted(every, shape)


# For these schemes many categories are another program.
BLOCKWISE = ("gls", "gls_strong", "gumbel_topk", "weighted_importance")
CASES = [
    (name, shape) for name in schemes.NAMES for shape in SHAPES[: 3 if name in BLOCKWISE else 2]
]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
@few
@given(data=st.data())
def test_schemes_give_possible_tokens_and_probabilities(data, name, shape):
    check_scheme(data, schemes.get(name), shape)


@cache
def inversion_trials(name, shape):
    def trial(key, log_p, log_q):
        return schemes.get(name).inversion_trial(log_p, log_q, shape.drafts)(key)

    return lifted(trial, shape)


def has_inversion(name):
    trials = schemes.get(name).trials
    return trials is not None and trials.inversion is not None


@pytest.mark.parametrize("name", [name for name in schemes.NAMES if has_inversion(name)])
@few
@given(data=st.data())
def test_trials_by_inversion_accept_what_is_certain_and_nothing_impossible(name, data):
    """Where p = q every trial accepts, if drafts are samples; none where no category is possible under both."""
    shape = SHAPES[1]
    problem, log_p, log_q = drawn(data, shape)
    accepted = inversion_trials(name, shape)(problem)
    assert accepted.dtype == bool and accepted.shape == (ROWS, shape.drafts)
    accepts_equal = name != "naive" and schemes.get(name).samples_drafts
    assert accepted[: ROWS // 4].all() or not accepts_equal
    is_possible_under_both = (log_p >= races.LIGHTEST) & (log_q >= races.LIGHTEST)
    assert not accepted[~is_possible_under_both.any(-1)].any()


def unmasked_residual(key, drafts, log_p, log_q, active):
    """Speculative sampling with the logarithm of `q - p` instead of `(q - p)+`."""
    p, q = races.weights(log_p), races.weights(log_q)
    noise = races.exponentials(races.private_key(key), 1, len(q))[0]
    fresh = races.winner(noise / (q - p))
    is_accepted = active[0] & (noise[0] * p[drafts[0]] < q[drafts[0]])
    return jnp.where(is_accepted, drafts[0], fresh)


@few
@given(data=st.data())
def test_a_planted_defect_is_caught(data):
    verification = TokenVerification(unmasked_residual)
    broken = dataclasses.replace(schemes.get("single"), verification=verification, trials=None)
    with pytest.raises(AssertionError):
        check_scheme(data, broken, SHAPES[1])


def check_scheme(data, scheme, shape):
    problem, log_p, log_q = drawn(data, shape)
    drafts, tokens, accepted, exact, bound = scheme_calls(scheme, shape)(problem)
    is_possible(drafts, log_p)
    is_possible(tokens, log_q)
    np.testing.assert_array_equal(accepted[:, -1], (drafts == tokens[:, :1]).any(1))
    is_probability(exact, 0)  # clipped
    assert (exact >= bound - shape.slack).all()
    equal = slice(0, ROWS // 4)  # p = q
    if scheme.name not in ("naive", "weighted_importance") and scheme.samples_drafts:
        assert (exact[equal] >= 1 - shape.slack).all() and accepted[equal, -1].all()
