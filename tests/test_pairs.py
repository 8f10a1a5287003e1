import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gls_jax
from gls_jax import decoding, schemes
from gls_jax.distributions import pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(4)


def test_random_families():
    """Dirichlet moments: variance of a coordinate is (1/N)(1 - 1/N) / (N c + 1); 20,000 draws, 8 standard errors."""
    for family, scale in (("dirichlet", 0.5), ("dirichlet", 3.0), ("gaussian", 2.0)):
        laws = pairs.random(KEY, 20_000, 5, family=family, scale=scale)
        for law in laws:
            gls_jax.check_log_probs(law)
            assert abs(np.exp(law).mean(0) - 0.2).max() < 0.02
        if family == "dirichlet":
            assert np.exp(laws.log_q).var() == pytest.approx(0.16 / (5 * scale + 1), rel=0.05)
        assert abs(np.corrcoef(laws.log_p[:, 0], laws.log_q[:, 0])[0, 1]) < 0.06


def causal(seed, vocabulary=30):
    """A toy causal model: the logits after t tokens depend on those tokens."""
    table = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary)) * 2

    def logits(tokens):
        return jnp.cumsum(jnp.asarray(table)[tokens], axis=1)

    return logits


TEXTS = [[3, 1, 4, 1, 5], [9, 2], [], [6, 5, 3, 5, 8, 9, 7]]


def test_next_token_laws_are_the_models_own():
    target, drafter = causal(0), causal(1)
    got = pairs.next_token(
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


def test_long_texts_are_cut():
    """Pieces are read on their own, and what follows `num_positions` is not read at all."""
    seen = []

    def target(tokens):
        seen.append(tokens.shape)
        return causal(0)(tokens)

    got = pairs.next_token(
        target, causal(1), [list(range(20)), [7]], num_positions=10, max_context=4
    )
    pieces = [list(range(at, at + 4)) for at in range(0, 20, 4)]
    expected = pairs.next_token(causal(0), causal(1), pieces, num_positions=10)
    np.testing.assert_array_equal(got.log_q, expected.log_q)
    assert seen == [(1, 4)] * 3


def test_cutting_to_the_joint_support_changes_no_acceptance():
    target, drafter = causal(0), causal(1)
    seen = []
    cut = pairs.next_token(
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


def test_files(tmp_path):
    laws = pairs.random(KEY, 3, 4)
    np.savez(tmp_path / "good.npz", log_p=laws.log_p, log_q=laws.log_q.astype(np.float64))
    np.testing.assert_array_equal(pairs.load(tmp_path / "good.npz").log_p, laws.log_p)
    np.savez(tmp_path / "one.npz", log_p=laws.log_p[0], log_q=laws.log_q[0])
    assert pairs.load(tmp_path / "one.npz").log_p.shape == (1, 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"log_p": np.zeros((1, 1))}, "expected arrays log_p and log_q of shape .* got log_p"),
        ({}, "expected arrays log_p and log_q .* got none"),
        (
            {"log_p": np.zeros((2, 1)), "log_q": np.zeros((1, 1))},
            r"one shape \[M, N\], got \[2, 1\] and \[1, 1\]",
        ),
        (
            {"log_p": np.zeros((0, 1)), "log_q": np.zeros((0, 1))},
            r"one shape \[M, N\], got \[0, 1\]",
        ),
        (
            {"log_p": np.ones((1, 1)), "log_q": np.zeros((1, 1))},
            r"log_p\[0\]: expected log-probabilities of at most 0",
        ),
        (
            {"log_p": np.array(["a"]), "log_q": np.zeros((1, 1))},
            "log_p: expected an array of floats",
        ),
        ({"log_p": np.array([None]), "log_q": np.zeros((1, 1))}, "expected an .npz file"),
    ],
)
def test_bad_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        pairs.load(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; expected an .npz file"):
        pairs.load(tmp_path / "none.npz")
    laws = pairs.random(KEY, 30, 40)
    np.savez(tmp_path / "whole.npz", log_p=laws.log_p, log_q=laws.log_q)
    np.save(tmp_path / "array.npy", laws.log_p)
    whole = (tmp_path / "whole.npz").read_bytes()
    broken = bytearray(whole)
    broken[200:220] = b"x" * 20
    contents = (
        b"",
        b"text",
        whole[: len(whole) // 2],
        (tmp_path / "array.npy").read_bytes(),
        bytes(broken),
    )
    for content in contents:
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz: expected an .npz file") as caught:
            pairs.load(tmp_path / "bad.npz")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pairs.random(KEY, 0, 3), "num_pairs: expected an int of at least 1, got 0"),
        (
            lambda: pairs.random(KEY, 1, 3, family="cauchy"),
            "expected 'dirichlet' or 'gaussian', got 'cauchy'",
        ),
        (
            lambda: pairs.random(KEY, 1, 3, scale=0),
            "scale: expected a number within 1e-3..1e6, got 0",
        ),
        (
            lambda: pairs.next_token(causal(0), causal(1), [[]], num_positions=1),
            "at least one text",
        ),
        (
            lambda: pairs.next_token(causal(0), causal(1, 31), [[1]], num_positions=1),
            "one vocabulary, got 31 and 30",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
