"""The losses of a drafter, against definitions over the whole vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from gls_jax.models.drafter.objectives import overlap, parse_objective

NUM, TOKENS, ALL = 5, np.array([0, 2, 3, 6]), 8
RNG = np.random.default_rng(3)
P = RNG.dirichlet(np.ones(len(TOKENS)), NUM)
Q = RNG.dirichlet(np.ones(ALL), NUM)
WHOLE_P = np.zeros((NUM, ALL))
WHOLE_P[:, TOKENS] = P
LOG_P, LOG_Q = jnp.log(jnp.asarray(P, jnp.float32)), jnp.log(jnp.asarray(Q[:, TOKENS], jnp.float32))
COUNTS = jnp.array([True, False, True, True, False])
KEY = jax.random.key(0)


def expected(name):
    """The mean over the positions that count, in float64 with all tokens."""
    tv = np.abs(WHOLE_P - Q).sum(-1) / 2
    cross_entropy = -(Q[:, TOKENS] * np.log(P)).sum(-1)
    weights = np.asarray(COUNTS) / 3
    if name == "tv":
        return weights @ tv
    if name == "kl":
        return weights @ cross_entropy
    if name == "lk":
        mixing = np.exp(-3 * weights @ (1 - tv))
        return weights @ (mixing * cross_entropy + (1 - mixing) * tv)
    _, scheme, num_drafts = name.split(":")
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(WHOLE_P), np.log(Q)
    acceptance = [
        float(schemes.get(scheme).acceptance(p, q, int(num_drafts)))
        for p, q in zip(log_p, log_q, strict=True)
    ]
    return weights @ (1 - np.array(acceptance))


@pytest.mark.parametrize("name", ["kl", "tv", "lk", "list:gls:4", "list:spectr:3"])
def test_losses(name):
    loss = parse_objective(name).mean(KEY, LOG_P, LOG_Q, COUNTS)
    assert float(loss) == pytest.approx(expected(name), abs=2e-5)


def test_loss_at_a_random_token_of_the_target():
    """The mean over 4,000 keys is the loss, up to five standard errors: one failure in a million."""
    objective = parse_objective("list:gumbel_topk:2")
    keys = jax.random.split(KEY, 4000)
    values = jax.jit(jax.vmap(lambda key: objective.mean(key, LOG_P, LOG_Q, COUNTS)))(keys)
    error = float(values.std()) / np.sqrt(len(keys))
    assert 0 < error < 0.005
    assert float(values.mean()) == pytest.approx(expected("list:gumbel_topk:2"), abs=5 * error)


@pytest.mark.parametrize("name", ["kl", "tv", "lk", "list:gls:4"])
def test_gradients_lead_to_a_smaller_loss(name):
    """And positions that do not count have none."""
    objective = parse_objective(name)

    def loss(logits):
        return objective.mean(KEY, jax.nn.log_softmax(logits), LOG_Q, COUNTS)

    gradient = jax.grad(loss)(LOG_P)
    assert not gradient[~np.asarray(COUNTS)].any() and gradient[np.asarray(COUNTS)].any()
    assert float(loss(LOG_P - 0.05 * gradient)) < float(loss(LOG_P))


def test_overlap_is_the_acceptance_of_one_draft():
    found = overlap(LOG_P, LOG_Q)
    np.testing.assert_allclose(found, np.minimum(WHOLE_P, Q).sum(-1), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["", "KL", "list", "list:gls", "list:gls:x", "list:nothing:2", "list:block:2"]
)
def test_names_that_mean_nothing(name):
    with pytest.raises(ValueError, match=r"loss|scheme"):
        parse_objective(name)
