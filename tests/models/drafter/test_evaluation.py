"""Acceptance on held-out texts, and training that goes on from a drafter."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from gls_jax import models
from gls_jax.models import drafter

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = models.Config(
    vocab_size=31,
    hidden_size=12,
    intermediate_size=20,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
)
OPTIONS = drafter.DrafterTraining(
    head_tokens=9,
    steps_ahead=2,
    epochs=2,
    batch_tokens=128,
    validation_steps=4,
    validation_share=0.3,
    learning_rate=0.003,
)
LAYERS = (0, 1)


@pytest.fixture(scope="module")
def target():
    graph, params = nnx.split(models.Transformer(CONFIG, rngs=nnx.Rngs(0)))
    return nnx.merge(graph, jax.tree.map(lambda x: 5 * x, params))


@pytest.fixture(scope="module")
def texts(target, tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 31, rng.integers(5, 40)).tolist() for _ in range(24)]
    return drafter.read_texts(tmp_path_factory.mktemp("texts"), target, rows, LAYERS)


@pytest.fixture(scope="module")
def trained(target, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return drafter.train_drafter(folder, target, texts, LAYERS, OPTIONS)


def test_overlap_of_the_held_out_distributions_is_the_acceptance_of_validation(
    target, texts, trained
):
    """At the second step ahead, where both count the same positions."""
    held_out = drafter.held_out_distributions(trained.last, target, texts, OPTIONS, 10**6)
    np.testing.assert_allclose(np.exp(held_out.log_p).sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.exp(held_out.log_q).sum(-1), 1, atol=1e-5)
    overlap = np.minimum(np.exp(held_out.log_p[1]), np.exp(held_out.log_q)).sum(-1).mean()
    assert overlap == pytest.approx(trained.validations[-1].acceptance[1], abs=1e-5)
    # Fewer positions are some of these, of the same texts.
    few = drafter.held_out_distributions(trained.last, target, texts, OPTIONS, 10)
    assert few.log_q.shape == (10, 10) and set(few.texts) <= set(held_out.texts)


def test_training_goes_on_from_a_drafter(target, texts, trained, tmp_path):
    before = jax.tree.map(np.asarray, nnx.state(trained.last))
    further = drafter.train_drafter(
        tmp_path / "further", target, texts, LAYERS, OPTIONS, start=trained.last
    )
    assert further.validations[0].length == pytest.approx(trained.validations[-1].length, abs=1e-6)
    assert further.validations[-1].length > further.validations[0].length
    # The drafter that was given is as it was.
    jax.tree.map(
        np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(trained.last))
    )
    with pytest.raises(ValueError, match="start: expected a drafter of these options"):
        other = dataclasses.replace(OPTIONS, layers=2)
        drafter.train_drafter(tmp_path / "other", target, texts, LAYERS, other, start=trained.last)
    with pytest.raises(ValueError, match="start"):
        folder = tmp_path / "further"
        drafter.train_drafter(
            folder, target, texts, LAYERS, OPTIONS, start=further.last, resume=True
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(observed_layers=(0, 5)), "observed_layers: expected increasing indices"),
        (dict(observed_layers=(1,)), "texts: expected features of 1 layers, 12 numbers a token"),
        (dict(start="drafter"), "start: expected a DrafterNetwork, got str"),
    ],
)
def test_bad_arguments_of_training(target, texts, tmp_path, change, message):
    arguments = dict(observed_layers=LAYERS, options=OPTIONS) | change
    with pytest.raises(ValueError, match=message):
        drafter.train_drafter(tmp_path / "run", target, texts, **arguments)


@pytest.mark.parametrize("num_positions", [0, -1, 2.5, None])
def test_bad_numbers_of_positions(target, texts, trained, num_positions):
    with pytest.raises(ValueError, match="num_positions: expected"):
        drafter.held_out_distributions(trained.last, target, texts, OPTIONS, num_positions)
