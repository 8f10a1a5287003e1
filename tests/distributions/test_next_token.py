"""Next-token pairs are the models' own distributions; cutting them changes no acceptance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import decoding, schemes
from gls_jax.distributions import next_token_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")


def causal(seed, vocabulary=30):
    """A toy causal model: the logits after t tokens depend on those tokens."""
    table = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary)) * 2

    def logits(tokens):
        return jnp.cumsum(jnp.asarray(table)[tokens], axis=1)

    return logits


TEXTS = [[3, 1, 4, 1, 5], [9, 2], [], [6, 5, 3, 5, 8, 9, 7]]


def test_distributions_are_the_models_own():
    target, drafter = causal(0), causal(1)
    got = next_token_pairs(
        target, drafter, TEXTS, num_positions=9, temperature=0.7, draft_temperature=1.5
    )
    assert got.log_p.shape == got.log_q.shape == (9, 30)
    row = 0
    for text in TEXTS:
        for length in range(1, len(text) + 1):
            if row == 9:
                break
            alone = target(np.array([text[:length]]))[0, -1] / 0.7
            np.testing.assert_allclose(got.log_q[row], jax.nn.log_softmax(alone), atol=1e-4)
            alone = drafter(np.array([text[:length]]))[0, -1] / 1.5
            np.testing.assert_allclose(got.log_p[row], jax.nn.log_softmax(alone), atol=1e-4)
            row += 1


def test_long_texts_are_cut_into_pieces():
    """Pieces are read on their own, and what follows `num_positions` is not read at all."""
    seen = []

    def target(tokens):
        seen.append(tokens.shape)
        return causal(0)(tokens)

    got = next_token_pairs(
        target, causal(1), [list(range(20)), [7]], num_positions=10, max_context=4
    )
    pieces = [list(range(at, at + 4)) for at in range(0, 20, 4)]
    expected = next_token_pairs(causal(0), causal(1), pieces, num_positions=10)
    np.testing.assert_array_equal(got.log_q, expected.log_q)
    assert seen == [(1, 4)] * 3


def test_cutting_to_the_joint_support_changes_no_acceptance():
    target, drafter = causal(0), causal(1)
    seen = []
    cut = next_token_pairs(
        target,
        drafter,
        TEXTS,
        num_positions=100,
        top_k=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert cut.log_p.shape[0] == 14 and cut.log_p.shape[1] <= 8 and seen[-1] == (14, 14)
    full = [
        decoding.log_probs(
            jnp.concatenate([model(np.array([text]))[0] for text in TEXTS if text]), top_k=4
        )
        for model in (drafter, target)
    ]
    for name in schemes.NAMES:
        accept = jax.vmap(lambda p, q, name=name: schemes.get(name).acceptance(p, q, 1))
        np.testing.assert_allclose(accept(*cut), accept(*full), atol=2e-6)


def test_log_probs():
    logits = jnp.array([1.0, 3.0, 3.0, 0.0])
    np.testing.assert_allclose(jnp.exp(decoding.log_probs(logits, temperature=0)), [0, 1, 0, 0])
    np.testing.assert_allclose(
        jnp.exp(decoding.log_probs(logits, top_k=1)), [0, 0.5, 0.5, 0]
    )  # a tie keeps both
    np.testing.assert_allclose(
        decoding.log_probs(logits, top_k=99), jax.nn.log_softmax(logits), rtol=1e-6
    )
    assert decoding.log_probs(logits.astype(jnp.bfloat16), temperature=2.0).dtype == jnp.float32
    for knobs in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}):
        with pytest.raises(
            ValueError, match=r"expected (0 or a finite number|an int of at least 1)"
        ):
            decoding.log_probs(logits, **knobs)


@pytest.mark.parametrize(
    ("drafter", "texts", "message"),
    [
        (causal(1), [[]], "at least one text"),
        (causal(1, 31), [[1]], "one vocabulary, got 31 and 30"),
    ],
)
def test_bad_arguments_are_refused(drafter, texts, message):
    with pytest.raises(ValueError, match=message):
        next_token_pairs(causal(0), drafter, texts, num_positions=1)
