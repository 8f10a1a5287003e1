"""Kernels: the law of the drafts given the emitted token is that of `propose` and `verify`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from gls_jax.planner import conditional
from gls_jax.schemes import block, gls
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs, many

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRIALS, ALPHA = (
    50_000,
    1e-9,
)  # a family of 18 tests: a correct kernel fails one of them with probability below 1e-7


def turned(law):
    """`[N, N]`: row y has item y in column 0."""
    first = np.arange(NUM_ITEMS)
    rest = np.array([[i for i in first if i != y] for y in first])
    return law[np.concatenate([first[:, None], rest], axis=1)]


def drafts_of(name):
    return min(NUM_DRAFTS, schemes.get(name).max_drafts or NUM_DRAFTS)


def kernels(name, p, q):
    """`[laws, token, J, J']`."""
    columns = [np.concatenate([turned(law) for law in laws]) for laws in (p, q)]
    found = conditional.kernels(*map(logs, columns), scheme=name, num_drafts=drafts_of(name))
    return found.reshape(len(p), NUM_ITEMS, *found.shape[1:])


@pytest.mark.parametrize("name", conditional.NAMES)
def test_the_tokens_average_is_the_exact_acceptance(name):
    counts = tuple(range(1, drafts_of(name) + 1))
    p, q = (
        np.concatenate([np.array(one), two])
        for one, two in zip(zip(*PROBLEMS.values(), strict=True), many(20), strict=True)
    )

    @jax.jit
    @jax.vmap
    def exact(log_p, log_q):
        if name == "gls_strong":
            return jnp.stack([gls.acceptance_active(log_p, log_q, j, counts[-1]) for j in counts])
        return schemes.get(name).acceptance_curve(log_p, log_q, counts)

    found = kernels(name, p, q)
    np.testing.assert_allclose(found.sum(-1)[q > 0], 1, atol=2e-6)
    hit = np.where(q[..., None] > 0, q[..., None] * (1 - found[:, :, 1:, 0]), 0).sum(axis=1)
    np.testing.assert_allclose(hit, exact(logs(p), logs(q)), atol=5e-6)


@pytest.mark.parametrize("name", conditional.NAMES)
def test_how_many_drafts_equal_the_token(name):
    """The joint law of the token and of the number of drafts that equal it, against trials."""
    scheme, count = schemes.get(name), drafts_of(name)

    @jax.jit
    def trials(key, log_p, log_q):
        def trial(key):
            drafts = scheme.propose(key, log_p, count)
            token = scheme.verification.verify(key, drafts, log_p, log_q, jnp.ones(count, bool))
            return token * (count + 1) + jnp.sum(drafts == token)

        cells = jax.lax.map(trial, jax.random.split(key, TRIALS), batch_size=1000)
        return jnp.bincount(cells, length=NUM_ITEMS * (count + 1))

    for kind in ("plain", "zeros in p"):
        p, q = PROBLEMS[kind]
        chances = kernels(name, p[None], q[None])[0, :, count]
        expected = np.where(q[:, None] > 0, q[:, None] * chances, 0).ravel()
        counts = np.asarray(trials(jax.random.key(5), logs(p), logs(q)))
        assert oracles.chi_square(counts, expected) > ALPHA
        if kind == "plain" and count > 1:  # the easy mistake: the winner's law for all
            wrong = np.roll(expected.reshape(NUM_ITEMS, -1), 1, axis=0).ravel()
            assert oracles.chi_square(counts, wrong) < ALPHA


@pytest.mark.parametrize("name", conditional.NAMES)
def test_an_impossible_token_is_the_limit_of_an_unlikely_one(name):
    """At the edge of top-k the law that a token was sampled from may differ in the last bit from the one read again."""
    p = np.array([[0.3, 0.7, 0.0], [0.0, 0.7, 0.3], [1.0, 0.0, 0.0]])
    impossible, unlikely = (
        logs(np.array([[chance, 0.6 - chance, 0.4]] * 3)) for chance in (0, 1e-7)
    )
    found, limit = (
        conditional.kernels(logs(p), q, scheme=name, num_drafts=drafts_of(name))
        for q in (impossible, unlikely)
    )
    np.testing.assert_allclose(found, limit, atol=1e-5)
    np.testing.assert_allclose(
        found[1, :, 0], 1, atol=1e-6
    )  # what is never drafted is never accepted


def test_likelihood_ratio_of_impossible_tokens():
    ratio = block.likelihood_ratio(
        logs(np.array([[0.0, 1.0], [0.5, 0.5]])), logs(np.array([[0.0, 1.0]] * 2))
    )
    assert ratio[0] == 0 and 1e6 < ratio[1] < np.inf


def test_unknown_scheme():
    with pytest.raises(ValueError, match=r"scheme: expected one of gls, .*, got 'optimal'"):
        conditional.kernels(np.zeros((1, 1)), np.zeros((1, 1)), scheme="optimal", num_drafts=1)
