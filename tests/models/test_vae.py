"""The image VAE and its training: shapes, losses, resuming, and the folder of a run."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gls_jax import models
from gls_jax.models import vae, vae_checkpoints, vae_training
from tests.images import CONFIG, TRAINING, ramps

IMAGES = ramps(512)


def train(folder, images=IMAGES, config=CONFIG, **changes):
    return models.train_vae(folder, images, config, **(TRAINING | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    return folder, train(folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "short"
    return folder, train(folder, epochs=3)


@pytest.mark.parametrize(
    ("source", "side"),
    [
        ((28, 14, 1), (7, 7, 1)),
        ((32, 16, 3), (16, 16, 3)),
        ((5, 3, 2), (1, 1, 2)),
        ((1, 1, 1), (2, 3, 1)),
    ],
)
def test_estimates_have_the_shape_of_any_source(source, side):
    config = models.VaeConfig(source, side, latent=3, channels=8, hidden=16, features=6)
    graph, params = nnx.split(vae.abstract(config))

    def all_outputs(params, source, side):
        network = nnx.merge(graph, params)
        mean, variance = network.encode(source)
        features = network.project(side)
        score = network.score(features, mean)
        estimate = network.reconstruct(mean, features)
        return mean, variance, features, score, estimate

    outputs = jax.eval_shape(all_outputs, params, jnp.zeros((2, *source)), jnp.zeros((2, *side)))
    shapes = [output.shape for output in outputs]
    assert shapes == [(2, 3), (2, 3), (2, 6), (2,), (2, *source)]


def test_the_papers_sizes():
    network = vae.abstract(models.VaeConfig())
    assert network.encoder[3].kernel.shape == (128 * 7 * 4, 512)
    assert network.law.kernel.shape == (512, 8)
    assert network.hidden.kernel.shape == (4 + 128, 512)
    assert network.pixels.kernel.shape == (3, 3, 32, 1)


def test_dropout_is_for_training():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    network = models.new_vae(config, jax.random.key(0))
    latents, features = jnp.ones((4, 2)), jnp.ones((4, 16))
    plain = network.reconstruct(latents, features)
    assert (plain == network.reconstruct(latents, features)).all()
    first = network.reconstruct(latents, features, jax.random.key(0))
    second = network.reconstruct(latents, features, jax.random.key(1))
    assert (first != plain).any()
    assert (first != second).any()


def test_training_learns(finished):
    _, (model, losses) = finished
    assert losses[-1].squared_error < losses[0].squared_error / 4
    # The latent is used, and the estimator is better than a guess.
    assert losses[-1].kl > 1
    assert losses[-1].cross_entropy < 0.9 * np.log(2)
    test_images = ramps(64, seed=1)
    source = test_images[:, :, 4:]
    mean, variance = model.encode(model.params, source)
    features = model.project(model.params, test_images[:, 2:5, :3])
    estimate = model.reconstruct(model.params, mean, features)
    assert np.square(estimate - source).mean() < 0.02

    @jax.vmap
    def score(features, latent):
        return model.score(model.params, features, latent[None])[0]

    same_image = score(features, mean)
    other_image = score(features[::-1], mean)
    assert same_image.mean() > other_image.mean() + 0.3
    assert variance.shape == mean.shape and (variance > 0).all()


def test_a_larger_beta_leaves_less_in_the_latent(tmp_path, finished):
    assert train(tmp_path, beta=3.0).losses[-1].kl < finished[1].losses[-1].kl - 0.5


@pytest.mark.parametrize("where", ["between epochs", "within one"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, short, monkeypatch, where):
    step, calls = vae_training._step, []

    def killed_step(*arguments, **options):
        calls.append(1)
        if where == "within one" and len(calls) == 2 * 16 + 5:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    def killed_after(done, total):
        if where == "between epochs" and done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(vae_training, "_step", killed_step)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, epochs=3, progress=killed_after)
    # The second epoch was written, and the third is trained anew.
    assert vae_checkpoints.find(tmp_path).step == 2
    with pytest.raises(ValueError, match="expected a finished training run, got 2 of 3 epochs"):
        models.load_vae(tmp_path)
    monkeypatch.setattr(vae_training, "_step", step)
    seen = []
    model, losses = train(
        tmp_path, epochs=3, resume=True, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(3, 3)]
    assert losses == short[1].losses
    assert model.model_hash == short[1].model.model_hash
    chex.assert_trees_all_equal(model.params, short[1].model.params)


def test_more_epochs_for_a_finished_run(tmp_path, short):
    train(tmp_path, epochs=2)
    assert train(tmp_path, epochs=3, resume=True).model.model_hash == short[1].model.model_hash
    again = train(tmp_path, epochs=3, resume=True)
    assert again.model.model_hash == short[1].model.model_hash and again.losses == short[1].losses


def test_a_folder_loads_as_the_model_that_was_trained(finished):
    folder, (model, _) = finished
    loaded = models.load_vae(folder)
    assert loaded.model_hash == model.model_hash and loaded.encode == model.encode
    side = ramps(3)[:, :3, :3]
    assert (loaded.project(loaded.params, side) == model.project(model.params, side)).all()


def test_hashes_tell_models_apart(finished):
    _, (model, _) = finished
    params = jax.tree.map(jnp.copy, model.params)
    leaves, structure = jax.tree.flatten(params)
    leaves[0] = leaves[0].at[0].add(1e-6)
    network = nnx.merge(model.encode.graph, jax.tree.unflatten(structure, leaves))
    other_weights = models.image_model(network, CONFIG)
    other_config = models.image_model(network, dataclasses.replace(CONFIG, dropout=0.1))
    hashes = {model.model_hash, other_weights.model_hash, other_config.model_hash}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resume": False}, "a training run is here; resume=True or --resume continues it"),
        ({"beta": 1.0}, r"a training run of another one \(beta\)"),
        ({"seed": 4, "batch": 16}, r"another one \(batch, seed\)"),
        ({"images": ramps(512, seed=2)}, r"another one \(images\)"),
        ({"config": dataclasses.replace(CONFIG, latent=3)}, r"another one \(config\)"),
        ({"epochs": 2}, "has 3 epochs, more than the 2 requested"),
    ],
)
def test_another_run_in_the_folder(short, changes, message):
    with pytest.raises(ValueError, match=message):
        train(short[0], **({"epochs": 3, "resume": True} | changes))
    assert models.load_vae(short[0]).model_hash == short[1].model.model_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta: expected a positive number, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a positive number, got nan"),
        ({"epochs": 0}, "epochs: expected an int of at least 1, got 0"),
        ({"seed": -1}, "seed: expected one int within"),
        (
            {"batch": 1},
            "batch: expected at least two images per step, got a batch of 1 and 512 images",
        ),
        (
            {"images": ramps(512)[:, :7]},
            "images: expected right halves of 8 x 4 pixels, 1 channel, got 7 x 4 pixels, 1 channel",
        ),
        (
            {"images": ramps(512) * 3},
            r"images: expected values within \[-1, 1\], got -2\.69\d* to 2\.69",
        ),
        (
            {"config": dataclasses.replace(CONFIG, side_shape=(3, 2, 1))},
            "side_shape: expected a square that fits",
        ),
    ],
)
def test_bad_input(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(
        ValueError, match=r"expected finite losses, got .* in epoch 1; try a smaller learning rate"
    ):
        train(tmp_path, learning_rate=1e18)
    assert vae_checkpoints.find(tmp_path) is None


@pytest.mark.parametrize(
    "sizes",
    [
        {"channels": 6},
        {"latent": 0},
        {"dropout": 1.0},
        {"source_shape": (8, 4)},
        {"side_shape": (0, 1, 1)},
    ],
)
def test_bad_sizes(sizes):
    (name,) = sizes
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(CONFIG, **sizes)


def test_folders_without_a_model(tmp_path, short):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="expected the folder of a trained image model"):
            models.load_vae(folder)
    broken = tmp_path / "broken"
    shutil.copytree(short[0], broken)
    for file in broken.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(
        ValueError, match="expected a checkpoint of a training run, got one that cannot be read"
    ):
        models.load_vae(broken)
