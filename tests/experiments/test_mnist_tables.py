"""The experiment on digits through its entry point, on images that a model learns in seconds."""

import csv
import math

import numpy as np
import pytest

from experiments import __main__ as entry
from experiments import mnist_report
from gls_jax import compression
from gls_jax.models import vae_training
from tests.images import ramps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {"--crop": 3, "--channels": 8, "--hidden": 32, "--features": 16, "--num-candidates": 32}
SMALL = [str(part) for size in SIZES.items() for part in size]
SMALL += ["--num-decoders", "1", "2", "--num-bins", "2", "4"]


def run(folder, *options):
    return entry.main(["mnist_tables", "--out", str(folder), *SMALL, *map(str, options)])


@pytest.fixture
def images(tmp_path):
    np.save(tmp_path / "images.npy", ramps(1500))
    return tmp_path / "images.npy"


def test_tables(tmp_path, images, capsys, monkeypatch):
    """Interrupted while it tests, then resumed: nothing that was done is done again."""
    options = ("--images", images, "--betas", 0.1, 1, "--epochs", 15, "--repeats", 2)
    run_trials = compression.ImageTrials.run
    calls = []

    def interrupted(trials, codec):
        calls.append((codec.model.model_hash, codec.code, len(trials.source)))
        if len(calls) == 10:
            raise KeyboardInterrupt
        return run_trials(trials, codec)

    monkeypatch.setattr(compression.ImageTrials, "run", interrupted)
    assert run(tmp_path / "out", *options) == 130
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["unfinished"]
    # The models are trained already.
    monkeypatch.setattr(vae_training, "_step", None)
    assert run(tmp_path / "out", *options) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mnist_tables.csv",
        "mnist_tables.png",
    ]
    # Only the call that was interrupted is done twice.
    assert len(set(calls)) == len(calls) - 1
    assert calls.count(calls[9]) == 2
    with (tmp_path / "out" / "mnist_tables.csv").open() as file:
        rows = list(csv.DictReader(file))
    error = {
        (row["scheme"], row["num_decoders"], row["num_bins"]): float(row["squared_error"])
        for row in rows
    }
    assert len(error) == len(rows) == 6
    assert error["gls", "2", "4"] < error["gls", "1", "4"] < 0.1
    assert {row["published"] for row in rows if row["num_bins"] == "4"} == {
        "0.1027",
        "0.086",
        "0.0941",
    }
    gains = {row["num_bins"]: float(row["gain"]) for row in rows if row["gain"]}
    assert gains == {
        bins: pytest.approx(error["baseline", "2", bins] - error["gls", "2", bins])
        for bins in ("2", "4")
    }
    printed = capsys.readouterr().out
    assert "the published order" in printed and "zero rate: " in printed and "-32.8 %" in printed


def test_deltas_of_known_curves():
    """Half the error is 3.01 dB; the same curve at half the bits is half the rate."""
    curve = {2**bits: (0.5**bits, 0.0) for bits in (2, 4, 6, 8)}
    half = {bins: (error / 2, 0.0) for bins, (error, _) in curve.items()}
    assert mnist_report.bjontegaard_deltas(curve, half)[1] == pytest.approx(10 * math.log10(2))
    faster = {2**bits: (0.5 ** (2 * bits), 0.0) for bits in (1, 2, 3, 4)}
    assert mnist_report.bjontegaard_deltas(curve, faster)[0] == pytest.approx(-50)
    flat = dict.fromkeys(curve, (0.1, 0.0))
    rate, psnr = mnist_report.bjontegaard_deltas(flat, half)
    assert math.isnan(rate) and psnr > 0
    assert all(map(math.isnan, mnist_report.bjontegaard_deltas({4: (1, 0)}, {4: (1, 0)})))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-candidates", 2], "num_candidates: expected at least 4, got 2"),
        (["--betas", -1], "beta: expected a positive number, got -1.0"),
        (["--images", "/none"], "/none: no such file or folder; expected IDX files"),
        (["--crop", 5], "crop: expected at most 4, what left halves have, got 5"),
        (["--num-decoders", 0], "num_decoders: expected an int of at least 1, got 0"),
    ],
)
def test_bad_input(tmp_path, images, capsys, options, message):
    assert run(tmp_path / "out", "--images", images, *options) == 2
    assert message in capsys.readouterr().err
