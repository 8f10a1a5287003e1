"""Sampling parameters against a slow version in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding
from tests.decoding import language

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("seed", range(3))
def test_against_the_slow_version(seed):
    """40 settings per seed, on distributions with ties and zeros."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        size = 11  # one shape: operations outside `jit` are compiled too
        logits = (
            rng.choice(rng.normal(0, 3, 6), size) if rng.random() < 0.5 else rng.normal(0, 3, size)
        )
        if rng.random() < 0.5:
            logits[rng.random(size) < rng.random()] = -np.inf
            logits[rng.integers(size)] = 0
        with np.errstate(divide="ignore"):
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            logits = np.log(p)
        text = rng.integers(0, size, 3)
        choices = dict(
            temperature=rng.choice([0.0, 0.5, 1.0, 3.0]),
            top_k=int(rng.choice([1, 3, 8, 12])) if rng.random() < 0.5 else None,
            top_p=float(rng.uniform(0.05, 1)) if rng.random() < 0.5 else None,
            min_p=float(rng.uniform(0, 1)) if rng.random() < 0.5 else None,
            repetition_penalty=float(rng.uniform(0.5, 2)) if rng.random() < 0.5 else None,
        )
        seen = np.isin(np.arange(size), text)
        log_p = decoding.log_probs(jnp.asarray(logits, jnp.float32), seen=seen, **choices)
        expected = language.process(p, text, **choices)
        np.testing.assert_allclose(np.exp(log_p), expected, atol=2e-6)


@pytest.mark.parametrize("has_ties", [False, True])
@pytest.mark.parametrize(
    "choices",
    [
        dict(top_p=0.9),
        dict(top_p=0.5, top_k=20),
        dict(min_p=0.05),
        dict(top_k=7),
        dict(min_p=0.05, top_k=7),
        dict(top_p=0.5, top_k=5),
    ],
)
def test_inside_jit(choices, has_ties):
    """XLA computes a value twice and rounds it differently; no kept token may fall between the two."""
    logits = 4 * jax.random.normal(jax.random.key(0), (64, 2000))
    logits = jnp.round(logits / 4) * 4 if has_ties else logits
    log_probs = jax.jit(lambda logits, t: decoding.log_probs(logits, temperature=t, **choices))
    log_p = log_probs(logits, 0.6)
    for row in range(64):
        weights = np.exp(np.asarray(logits[row], np.float64))
        expected = language.process(weights / weights.sum(), (), temperature=0.6, **choices)
        np.testing.assert_allclose(np.exp(log_p[row]), expected, atol=2e-5)


def test_order_of_the_vocabulary_does_not_matter():
    """A reversed vocabulary gives the reversed distribution, with ties and without."""
    logits = jnp.array([1.0, 1, 1, 0.5, 0.5, 0])
    for choices in (
        dict(top_k=2),
        dict(top_p=0.3),
        dict(top_p=0.9),
        dict(top_k=5, top_p=0.8),
        dict(min_p=0.9),
    ):
        log_p = decoding.log_probs(logits, **choices)
        reversed_log_p = decoding.log_probs(logits[::-1], **choices)
        np.testing.assert_array_equal(log_p, reversed_log_p[::-1])


def test_parameters_may_differ_by_row():
    logits = jax.random.normal(jax.random.key(0), (3, 2, 9))
    by_row = dict(
        temperature=jnp.array([0.0, 1, 2])[:, None], top_p=jnp.array([0.5, 0.9, 1])[:, None]
    )
    log_probs = jax.jit(lambda logits, by_row: decoding.log_probs(logits, top_k=4, **by_row))
    log_p = log_probs(logits, by_row)
    for row in range(3):
        of_row = {name: float(value[row, 0]) for name, value in by_row.items()}
        expected = decoding.log_probs(logits[row], top_k=4, **of_row)
        np.testing.assert_allclose(log_p[row], expected, rtol=1e-5)


def test_invalid_logits_give_nan():
    """Wherever the invalid logit is, among few and among many."""
    for size in (3, 600):
        valid = np.random.default_rng(0).normal(size=size)
        for choices in ({}, dict(top_k=1), dict(top_k=2, min_p=0.1), dict(top_k=2, top_p=0.5)):
            log_probs = jax.jit(lambda x, t, c=choices: decoding.log_probs(x, temperature=t, **c))
            for temperature in (0.0, 1.0):
                for value in (np.nan, np.inf):
                    for place in (0, size // 2, size - 1):
                        logits = np.where(np.arange(size) == place, value, valid)
                        assert jnp.isnan(log_probs(logits, temperature)).all()
                assert jnp.isnan(log_probs(np.full(size, -np.inf), temperature)).all()
