"""Random pairs have the distributions that they claim; files of pairs are read or refused in one line."""

import jax
import numpy as np
import pytest

import gls_jax
from gls_jax.distributions import pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(4)


def test_moments_of_random_families():
    """Dirichlet moments: variance of a coordinate is (1/N)(1 - 1/N) / (N c + 1); 20,000 draws, 8 standard errors."""
    for family, scale in (("dirichlet", 0.5), ("dirichlet", 3.0), ("gaussian", 2.0)):
        log_p, log_q = pairs.random(KEY, 20_000, 5, family=family, scale=scale)
        for log_probs in (log_p, log_q):
            gls_jax.check_log_probs(log_probs)
            assert abs(np.exp(log_probs).mean(0) - 0.2).max() < 0.02
        if family == "dirichlet":
            assert np.exp(log_q).var() == pytest.approx(0.16 / (5 * scale + 1), rel=0.05)
        assert abs(np.corrcoef(log_p[:, 0], log_q[:, 0])[0, 1]) < 0.06


def test_files_are_read(tmp_path):
    written = pairs.random(KEY, 3, 4)
    np.savez(tmp_path / "good.npz", log_p=written.log_p, log_q=written.log_q.astype(np.float64))
    np.testing.assert_array_equal(pairs.load(tmp_path / "good.npz").log_p, written.log_p)
    np.savez(tmp_path / "one.npz", log_p=written.log_p[0], log_q=written.log_q[0])
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
def test_bad_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        pairs.load(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_broken_npz_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; expected an .npz file"):
        pairs.load(tmp_path / "none.npz")
    written = pairs.random(KEY, 30, 40)
    np.savez(tmp_path / "whole.npz", log_p=written.log_p, log_q=written.log_q)
    np.save(tmp_path / "array.npy", written.log_p)
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
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "num_pairs: expected an int of at least 1, got 0"),
        ((1, 3), {"family": "cauchy"}, "family: expected one of dirichlet, gaussian, got 'cauchy'"),
        ((1, 3), {"scale": 0}, "scale: expected a number within 1e-3..1e6, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        pairs.random(KEY, *arguments, **options)
