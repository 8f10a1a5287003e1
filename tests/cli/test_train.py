"""`gls-jax train`."""

import json

import numpy as np
import pytest

from gls_jax import cli, models
from gls_jax.models import vae_training
from tests.images import ramps

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {"--crop": 3, "--latent": 2, "--channels": 8, "--hidden": 32, "--features": 16}
CODE = {"--num-decoders": 2, "--num-candidates": 32, "--num-bins": 4}
SMALL = [
    part
    for size in {**SIZES, **CODE, "--beta": 0.1, "--learning-rate": 3e-3}.items()
    for part in size
]


@pytest.fixture
def train(tmp_path):
    np.save(tmp_path / "images.npy", ramps(300))
    always = ["train", "--images", tmp_path / "images.npy", "--out", tmp_path / "out", *SMALL]
    return lambda *options: cli.main([*map(str, always), *map(str, options)])


def test_train_interrupt_resume_test(train, tmp_path, capsys, monkeypatch):
    step, calls = vae_training._step, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    monkeypatch.setattr(vae_training, "_step", interrupted)
    assert train("--epochs", 12) == 130
    assert "--resume continues from here" in capsys.readouterr().err
    assert train("--epochs", 12) == 2
    assert "a training run is here; resume=True or --resume continues it" in capsys.readouterr().err
    assert train("--epochs", 12, "--resume", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (
        len(answer["losses"]) == 12
        and answer["losses"][-1]["squared_error"] < answer["losses"][0]["squared_error"]
    )
    assert answer["model"] == models.load_vae(tmp_path / "out").model_hash
    gls, baseline = answer["test"]
    assert (gls["scheme"], baseline["scheme"], gls["num_images"]) == ("gls", "baseline", 30)
    assert 0 < gls["squared_error"] < 0.2 and gls["standard_error"] > 0 and 0 < gls["matched"] <= 1
    assert train("--epochs", 12, "--resume") == 0
    printed = capsys.readouterr().out
    assert (
        f"{gls['squared_error']:.4f}" in printed
        and "30 test images, K = 2, N = 32, L = 4" in printed
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "/none"], "/none: no such file or folder; expected IDX files"),
        (["--num-bins", 64], "num_bins: expected at most num_candidates (32), got 64"),
        (["--beta", 0], "beta: expected a positive number, got 0.0"),
        (["--crop", 5], "crop: expected at most 4, what left halves have, got 5"),
        (["--channels", 6], "channels: expected a multiple of 4, got 6"),
    ],
)
def test_bad_input(train, tmp_path, capsys, options, message):
    assert train(*options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
