"""Exact acceptance of coupled Gumbel top-K against its definition, and its interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes, trials
from gls_jax.schemes import gumbel_topk
from tests import oracles
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import ALPHA, SMALL_PROBLEMS

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOPK = schemes.get("gumbel_topk")


@pytest.mark.parametrize("problem", SMALL_PROBLEMS)
def test_acceptance_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 2, 4):
        exact = float(TOPK.acceptance(logs(p), logs(q), k))
        assert exact == pytest.approx(oracles.topk_acceptance(p, q, k), abs=1e-6)


@pytest.mark.parametrize("head_size", [24, 5])
def test_one_token_of_the_target_at_a_time(monkeypatch, head_size):
    """The mean over 4,000 tokens drawn from the target, and its gradient, are the exact ones.

    With a Poisson tail the mean is smaller, here by less than 0.02.
    """
    monkeypatch.setattr(gumbel_topk, "_SAMPLED_HEAD_SIZE", head_size)
    logits = 2 * jax.random.normal(jax.random.key(3), (2, 20))
    log_p, log_q = jax.nn.log_softmax(logits[0]), jax.nn.log_softmax(logits.mean(0))
    uniforms = (jnp.arange(4000) + 0.5) / 4000

    def mean(log_p):
        values = jax.vmap(gumbel_topk.sampled_acceptance, (0, None, None, None))(
            uniforms, log_p, log_q, 4
        )
        return jnp.mean(values)

    def exact(log_p):
        return gumbel_topk.acceptance(log_p, log_q, (4,))[0]

    value, gradient = jax.jit(jax.value_and_grad(mean))(log_p)
    expected, expected_gradient = jax.jit(jax.value_and_grad(exact))(log_p)
    if head_size < 20:
        assert 0 < expected - value < 0.02
        return
    assert float(value) == pytest.approx(float(expected), abs=5e-4)
    np.testing.assert_allclose(gradient, expected_gradient, atol=5e-4)


def test_interval_contains_the_exact_value(monkeypatch):
    """The evaluation for vocabularies, against the exact one on distributions small enough for both.

    The interval is not vacuous.
    """
    rng = np.random.default_rng(4)
    list_lengths = (1, 2, 4, 8)
    for spread, similar in ((2.0, 0.8), (3.0, 0.3), (0.5, 0.5)):
        logits = rng.normal(size=(2, 480)) * spread
        logits[1] = similar * logits[0] + (1 - similar) * logits[1]
        log_p, log_q = np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)))
        exact = gumbel_topk.acceptance_interval(log_p, log_q, list_lengths)
        np.testing.assert_array_equal(exact.lower, exact.upper)
        with monkeypatch.context() as patch:
            patch.setattr(gumbel_topk, "MAX_EXACT_CATEGORIES", 100)
            patch.setattr(gumbel_topk, "HEAD_SIZE", 48)
            ends = gumbel_topk.acceptance_interval(log_p, log_q, list_lengths)
        assert (ends.lower <= exact.estimate + 2e-6).all()
        assert (exact.estimate <= ends.upper + 2e-6).all()
        assert (ends.upper - ends.lower < 0.05).all()
        np.testing.assert_allclose(ends.estimate, exact.estimate, atol=5e-3)


def test_interval_of_a_vocabulary_fits_in_memory():
    """N = 151,936: less than 1 GB beside its inputs; a narrow interval, right at K = 1."""
    logits = np.random.default_rng(1).normal(size=(2, 151_936)) * 2.5
    logits[1] = 0.8 * logits[0] + 0.2 * logits[1]
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    interval = jax.jit(lambda p, q: gumbel_topk.acceptance_interval(p, q, (1, 8)))
    compiled = interval.lower(*log_probs).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1e9
    ends = compiled(*log_probs)
    assert (ends.upper - ends.lower < 0.02).all()
    # K = 1: one race, as in GLS and the Poisson scheme, and the bound is the Gumbel coupling.
    gumbel = float(bounds.list_matching(*log_probs, 1))
    assert ends.lower[0] - 1e-4 <= gumbel <= ends.upper[0] + 1e-4
    assert float(ends.estimate[0]) == pytest.approx(gumbel, abs=2e-3)


def test_interval_of_tiny_probabilities():
    """Squares of the probabilities leave float32, and lists are long enough to reach them."""
    p = np.full(76, 1e-19)
    p[:32] = (1 - 44e-19) / 32
    q = np.full(76, 0.0)
    q[:32], q[-1] = 0.1 / 32, 0.9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gumbel_topk, "HEAD_SIZE", 32)
        patch.setattr(gumbel_topk, "MAX_EXACT_CATEGORIES", 64)
        ends = gumbel_topk.acceptance_interval(logs(p), logs(q), (38,))
        patch.setattr(gumbel_topk, "MAX_EXACT_CATEGORIES", 76)
        with jax.enable_x64(True), np.errstate(divide="ignore"):
            exact = gumbel_topk.acceptance_interval(np.log(p), np.log(q), (38,))
    truth = float(exact.estimate[0])
    assert float(ends.lower[0]) - 1e-6 <= truth <= float(ends.upper[0]) + 1e-6


def test_all_tokens_but_one_are_rare():
    """Ratios of e^69 and more, which matter once the likely token is in the list."""
    log_p, log_q = logs([1, 1e-30, 1e-33, 1e-34]), logs([0.1, 0.2, 0.3, 0.4])
    # A match is a target 0 or 1, or one that overtakes 1 in the race for the second place: chance
    # 1e-3 and 1e-4.
    expected = 0.1 + 0.2 + 1e-3 + 1e-4
    exact = float(TOPK.acceptance(log_p, log_q, 2))
    assert exact == pytest.approx(expected, abs=1e-5)
    assert exact <= float(bounds.optimum_distinct(log_p, log_q, 2)) + 1e-6
    num_trials = 20_000
    for method in ("noise", "inversion"):
        estimate = trials.acceptance(
            jax.random.key(1),
            log_p,
            log_q,
            scheme="gumbel_topk",
            num_drafts=2,
            num_trials=num_trials,
            method=method,
        )
        num_accepted = round(float(estimate.mean) * num_trials)
        assert oracles.binomial(num_accepted, num_trials, expected) > ALPHA


@pytest.mark.parametrize(("light", "acceptance"), [(-79.0, 1.0), (-81.0, 0.0), (-90.0, 0.0)])
def test_the_lightest_tokens_are_impossible_everywhere(light, acceptance):
    """Around the floor of 2e-35 the exact value and the simulation agree on what can be drafted."""
    keys = jax.random.split(jax.random.key(0), 500)
    log_p, log_q = jnp.array([0.0, light]), jnp.array([-jnp.inf, 0.0])
    assert float(TOPK.acceptance(log_p, log_q, 2)) == acceptance
    accepted = jax.vmap(lambda key: TOPK.accepted(key, log_p, log_q, 2)[1])(keys)
    assert float(accepted.mean()) == acceptance
    drafts = jax.vmap(lambda key: TOPK.propose(key, log_p, 2))(keys)
    assert bool((drafts[:, 1] == (1 if acceptance else 0)).all())
