"""The Gaussian codec: its formulas, the published tables, bytes across processes, and bad input."""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.stats

from experiments import gaussian_tables
from gls_jax import compression
from gls_jax.compression import GaussianCodec, container
from gls_jax.compression.gaussian.monte_carlo_distortion import distortion, draw_symbols

KEY = jax.random.key(62)
JOINT = compression.GaussianSource(0.01, 0.5)


def test_estimates_are_conditional_means():
    """Against the covariance matrix of (A, W, T)."""
    covariance = np.ones((3, 3)) + np.diag([0, 0.01, 0.5])
    coefficients = covariance[0, 1:] @ np.linalg.inv(covariance[1:, 1:])
    w, t = np.array([0.3, -1.0]), np.array([2.0, 0.1])
    np.testing.assert_allclose(JOINT.estimate(w, t), coefficients[0] * w + coefficients[1] * t)
    np.testing.assert_allclose(JOINT.zero_rate(t), covariance[0, 2] / covariance[2, 2] * t)


def test_rows_are_densities_over_standard_normals():
    """Against scipy: log-weights differ as log-densities do, and none exceeds the bound."""
    a, t, z = np.array([0.7, -2.5]), np.array([1.1, -0.4]), np.linspace(-4, 4, 2001)
    variance = {"source": 0.01, "side": 1.01 - 1 / 1.5}
    mean = {"source": a, "side": t / 1.5}
    for name, row in (
        ("source", JOINT.target_given_source(a)),
        ("side", JOINT.target_given_side(t)),
    ):
        for n in range(2):
            symbol_row = compression.Normal(row.mean[n], row.variance[n])
            candidates = z[:, None].astype(np.float32)
            log_weight = np.asarray(
                compression.gaussian_density.log_weight((), symbol_row, candidates)
            )
            target = scipy.stats.norm.logpdf(z * 1.01**0.5, mean[name][n], variance[name] ** 0.5)
            expected = target - scipy.stats.norm.logpdf(z)
            near = expected > expected.max() - 20
            np.testing.assert_allclose(
                (log_weight - log_weight.max())[near], (expected - expected.max())[near], atol=2e-3
            )
            bound = float(compression.gaussian_density.log_bound((), symbol_row))
            assert log_weight.max() <= bound + 1e-4 and log_weight.max() > bound - 0.05


def test_information_density():
    a, t, w = 0.4, 1.0, 0.5
    expected = scipy.stats.norm.logpdf(w, a, 0.1) - scipy.stats.norm.logpdf(
        w, t / 1.5, (1.01 - 1 / 1.5) ** 0.5
    )
    assert JOINT.information_density(a, t, w) == pytest.approx(expected / math.log(2))


def test_converses():
    assert compression.wyner_ziv(3, 0.5) == pytest.approx(2**-6 / 3)
    assert compression.best_of_converse(2, 4, 0.5) == pytest.approx(2**-4 / (16 * 9))
    assert compression.best_of_converse(2, 1, 0.3) == compression.wyner_ziv(2, 0.3)


@pytest.mark.parametrize(("num_decoders", "mean_of_db"), [(1, -10.29), (2, -15.19), (4, -20.48)])
def test_zero_rate(num_decoders, mean_of_db):
    """dB of the mean in closed form for K = 1; means of dB as computed elsewhere. 100,000 draws have an error of .04."""
    source, sides, _ = draw_symbols(JOINT, KEY, 100_000, num_decoders)
    zero_rate = distortion(np.min((JOINT.zero_rate(sides) - source) ** 2, axis=0))
    error = zero_rate.mean_of_db.standard_error
    assert abs(zero_rate.mean_of_db.mean - mean_of_db) < 6 * error + 0.01
    if num_decoders == 1:
        exact = 10 * math.log10(1 / 3)
        assert abs(zero_rate.db_of_mean.mean - exact) < 6 * zero_rate.db_of_mean.standard_error


POINTS = [point for point in gaussian_tables.published().items() if point[0][2] in (4, 64)]


@pytest.mark.parametrize(
    ("code", "published"), POINTS, ids=["-".join(map(str, code)) for code, _ in POINTS]
)
def test_published_points(code, published):
    """Tables 10 and 11 at 10,000 trials (all of them: `python -m experiments gaussian_tables`).

    Within 4 standard errors plus 0.1 dB: for random keys a correct point fails with probability below 6e-5. Matches are
    at least as frequent as the lemma's bound (6 standard errors, 1e-9).
    """
    scheme, num_decoders, num_bins = code
    variance, published_distortion = published
    codec = GaussianCodec(num_decoders, 2**15, num_bins, variance, 0.5, scheme=scheme)
    result = compression.simulate(codec, KEY, 10_000)
    measured = result.distortion.mean_of_db
    assert abs(measured.mean - published_distortion) < 4 * measured.standard_error + 0.1
    if scheme == "gls":
        assert result.match.mean > result.bound.mean - 6 * result.match.standard_error


def test_order_of_schemes():
    """Separate streams help: some of four decoders matches more often, although the first one matches less often."""
    lists, shared = (
        compression.simulate(GaussianCodec(4, 2**15, 4, 0.01, 0.5, scheme=scheme), KEY, 10_000)
        for scheme in ("gls", "baseline")
    )
    assert lists.match.mean > shared.match.mean + 6 * 2**0.5 * lists.match.standard_error
    assert (
        lists.one_match.mean < shared.one_match.mean - 6 * 2**0.5 * shared.one_match.standard_error
    )


def test_bytes_in_other_processes(tmp_path):
    """20,000 symbols, five groups, encoded in one process on one device, decoded in another on three, and here."""
    count, num_bins = 20_000, 100
    source, sides, _ = draw_symbols(JOINT, KEY, count, 2)
    np.savez(tmp_path / "data.npz", source=source, side=sides[1])
    make = f"compression.GaussianCodec(2, 2**24, {num_bins}, 0.01, 0.5)"
    work = {
        "encode": f"open('blob', 'wb').write({make}.encode(5, data['source']))",
        "decode": "blob = open('blob', 'rb').read()\n"
        "result = compression.GaussianCodec.of(blob).decode(blob, data['side'], 1)\n"
        "np.savez('result.npz', index=result.index, estimate=result.estimate)",
    }
    for devices, name in ((1, "encode"), (3, "decode")):
        script = f"import numpy as np\nfrom gls_jax import compression\ndata = np.load('data.npz')\n{work[name]}"
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        # The timeout is part of the test: XLA may never finish compiling a chain of fused ciphers.
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | flags,
            check=True,
            cwd=tmp_path,
            timeout=180,
        )
    blob, codec = (tmp_path / "blob").read_bytes(), GaussianCodec(2, 2**24, num_bins, 0.01, 0.5)
    assert blob == codec.encode(5, source)
    here, there = codec.decode(blob, sides[1], 1), np.load(tmp_path / "result.npz")
    np.testing.assert_array_equal(here.index, there["index"])
    np.testing.assert_array_equal(here.estimate, there["estimate"])
    assert compression.sizes(blob).count == count
    assert compression.sizes(blob).rate == pytest.approx(math.log2(num_bins), rel=0.005)


SMALL = GaussianCodec(2, 64, 4, 0.1, 0.5, search="dense")


def test_codec_of_a_blob_and_empty_sources():
    blob = SMALL.encode(np.int64(3), [])
    unpacked = container.unpack(blob)
    assert GaussianCodec.of(blob) == GaussianCodec.of(unpacked) == SMALL
    assert SMALL.decode(blob, [], 0).estimate.shape == (0,)
    assert SMALL.decode(unpacked, [], 0).estimate.shape == (0,)
    assert compression.sizes(blob).payload_bits == 0


def test_a_forged_count_is_refused_before_keys_are_made():
    """2^30 keys would take 8 GB."""
    codec = GaussianCodec(2, 64, 1, 0.1, 0.5)
    unpacked = container.unpack(codec.encode(0, [1.0]))
    forged = dataclasses.replace(unpacked, messages=np.broadcast_to(np.int32(0), 2**30))
    with pytest.raises(ValueError, match=r"expected one value per symbol \(1073741824\), got 1"):
        codec.decode(forged, [1.0], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMALL.encode(0, [1.0, np.nan]), "source: expected finite values, got nan at 1"),
        (
            lambda: SMALL.encode(0, [[1.0]]),
            r"source: expected floats of shape \[n\], got float64 of shape \[1, 1\]",
        ),
        (lambda: SMALL.encode(0, ["a"]), "source: expected floats"),
        (lambda: SMALL.encode(0, [1j]), "source: expected floats"),
        (
            lambda: SMALL.encode(0, [5e4]),
            "source: expected values of standard deviation 1, got 5e.04",
        ),
        (
            lambda: SMALL.encode(0, [1e300]),
            "source: expected values of standard deviation 1, got 1e.300; scale them",
        ),
        (
            lambda: SMALL.decode(SMALL.encode(0, [1.0]), [1e5], 0),
            "side_information: expected values of standard deviation",
        ),
        (lambda: SMALL.pack(0, [4]), r"message: expected bins within 0\.\.3, got 4 to 4"),
        (lambda: SMALL.pack(0, [0.7]), "message: expected ints"),
        (
            lambda: compression.simulate(SMALL, KEY, 10, estimator="best"),
            "estimator: expected one of",
        ),
        (lambda: compression.wyner_ziv(1, -0.5), "side_variance: expected a positive number"),
        (
            lambda: compression.best_of_converse(1, 0, 0.5),
            "num_decoders: expected an int of at least 1",
        ),
        (lambda: SMALL.encode(-1, [1.0]), "seed: expected one int within"),
        (lambda: SMALL.encode(2**32, [1.0]), "seed: expected one int within"),
        (
            lambda: SMALL.decode(SMALL.encode(0, [1.0]), [1.0, 2.0], 0),
            r"expected one value per symbol \(1\), got 2",
        ),
        (
            lambda: SMALL.decode(SMALL.encode(0, [1.0]), [np.inf], 0),
            "side_information: expected finite values, got inf",
        ),
        (
            lambda: SMALL.decode(SMALL.encode(0, [1.0]), [1.0], 2),
            r"decoder: expected one int within 0\.\.1, got 2",
        ),
        (lambda: SMALL.decode(SMALL.encode(0, [1.0]), [1.0], -1), "decoder: expected one int"),
        (
            lambda: SMALL.decode(SMALL.encode(0, [1.0]), [1.0], 0, estimator="median"),
            "estimator: expected one of",
        ),
        (lambda: SMALL.decode(b"", [1.0], 0), "blob"),
        (lambda: SMALL.decode("text", [1.0], 0), "blob"),
        (
            lambda: GaussianCodec(3, 64, 4, 0.1, 0.5, search="dense").decode(
                SMALL.encode(0, [1.0]), [1.0], 0
            ),
            "blob: expected one of an equal codec, with num_decoders 3, got 2",
        ),
        (
            lambda: GaussianCodec(2, 64, 4, 0.2, 0.5, search="dense").decode(
                SMALL.encode(0, [1.0]), [1.0], 0
            ),
            "blob: expected one of an equal codec, with parameters",
        ),
        (lambda: GaussianCodec(2, 64, 4, 0.0, 0.5), "target_variance: expected a number within"),
        (lambda: GaussianCodec(2, 64, 4, 0.1, math.nan), "side_variance: expected a number within"),
        (
            lambda: GaussianCodec(2, 64, 4, "small", 0.5),
            "target_variance: expected a number, got 'small'",
        ),
        (lambda: GaussianCodec(2, 64, 65, 0.1, 0.5), "num_bins: expected at most num_candidates"),
        (
            lambda: GaussianCodec(2, 2**26, 2**25 - 1, 0.1, 0.5),
            "num_bins: expected a power of two or at most",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("target_variance", "side_variance"), [(1.0, 0.01), (100.0, 0.5), (0.01, 1e-3)]
)
def test_posterior_mean_is_never_worse_than_the_zero_rate_estimate(target_variance, side_variance):
    """Where the target adds little to the side information, whichever deviation is smaller."""
    codec = GaussianCodec(1, 64, 4, target_variance, side_variance)
    source, sides, _ = draw_symbols(codec.joint_distribution, KEY, 300, 1)
    keys = compression.symbol_keys(KEY, 300)
    message = codec.send(keys, source).message
    result = codec.receive(keys, message, sides[0], 0, estimator="posterior_mean")
    zero_rate = np.mean((codec.joint_distribution.zero_rate(sides[0]) - source) ** 2)
    assert np.mean((result.estimate - source) ** 2) < 1.02 * zero_rate
