"""Joint training of the image VAE's four networks: squared error + beta KL + cross-entropy of the
estimator.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gls_jax import checks, files, races
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.models import vae_checkpoints as checkpoints
from gls_jax.models.vae import ImageVae, VaeConfig, image_model, new_vae

__all__ = ["Losses", "Trained", "train_vae"]


class Losses(NamedTuple):
    """Means over an epoch.

    Attributes:
        squared_error: a pixel, in units of the range [-1, 1].
        kl: of the encoder's law from the prior, nats an image.
        cross_entropy: of the estimator, nats a pair; log 2 is guessing.
    """

    squared_error: float
    kl: float
    cross_entropy: float


class Trained(NamedTuple):
    """What training gave: the model, and the losses of every epoch."""

    model: ImageModel
    losses: list[Losses]


def train_vae(
    folder: str | Path,
    images: np.ndarray,
    config: VaeConfig,
    *,
    beta: float,
    epochs: int,
    seed: int,
    batch: int = 64,
    learning_rate: float = 1e-3,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train an image model and keep its state in a folder, a checkpoint an epoch.

    The right half of each image is the source, one random crop of its left half the side
    information, another one in every epoch. The loss is the squared error summed over the pixels,
    `beta` times the Kullback-Leibler divergence of the encoder's law from N(0, I), and the
    estimator's cross-entropy on pairs (w, features) of one image against pairs of two. Adam with
    momenta .9 and .99, as in the GLS paper. Every epoch has a key of its own: a run that was killed
    and resumed gives the weights of one that was not.

    Args:
        folder: made if missing; holds the newest checkpoint.
        images: `[n, height, width, channels]` in [-1, 1], whole images.
        config: sizes; `VaeConfig.of_images` fits them to the images.
        beta: weight of the divergence: the larger, the fewer bits the latent holds.
        epochs: passes over the images; images that do not fill a batch wait for the next pass.
        seed: of weights, order, crops, latents and dropout, 0 to 2^32 - 1.
        batch: images a step.
        learning_rate: of Adam.
        resume: go on with the run in the folder; a finished one may be given more epochs.
        progress: called with `(epochs done, epochs)`.

    Returns:
        `Trained(model, losses)`.

    Raises:
        ValueError: sizes that do not fit, a run in the folder without `resume` or one that was
            asked something else with it, or a loss that is not finite.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    images = _checked(images, config, batch, beta, learning_rate)
    checks.count(epochs, "epochs")
    checks.index(seed, "seed", last=2**32 - 1)
    asked = {
        "config": dataclasses.asdict(config),
        "beta": float(beta),
        "seed": int(seed),
        "batch": int(batch),
        "learning_rate": float(learning_rate),
        "images": hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest(),
    }
    done, losses = _found(folder, asked, epochs, resume)
    files.check_folder(folder)
    key = races.new_key(seed)
    graph, params = nnx.split(
        new_vae(config, races.private_key(key))
    )  # epochs have the other folds
    state = {"params": params, "adam": optax.adam(learning_rate, 0.9, 0.99).init(params)}
    if done:
        state = checkpoints.restore(folder, done, state)
    data = jnp.asarray(images)
    for epoch in range(done, epochs):
        state, row = _epoch(
            graph, state, data, jax.random.fold_in(key, epoch), config, beta, batch, learning_rate
        )
        if not all(map(np.isfinite, row)):
            raise ValueError(
                f"training: expected finite losses, got {row} in epoch {epoch + 1}; try a smaller learning rate"
            )
        losses.append(row)
        about = {
            "asked": asked,
            "config": asked["config"],
            "epochs": epochs,
            "losses": [list(row) for row in losses],
        }
        checkpoints.save(folder, epoch + 1, state, about)
        if progress is not None:
            progress(epoch + 1, epochs)
    return Trained(image_model(nnx.merge(graph, state["params"]), config), losses)


def _epoch(
    graph, state, images, key, config: VaeConfig, beta: float, batch: int, learning_rate: float
):
    """All steps of an epoch, one call each: inside of `lax.scan` XLA:CPU runs convolutions 5 to 20
    times slower.
    """
    size, steps = min(batch, images.shape[0]), max(1, images.shape[0] // batch)
    order_key, *step_keys = races.split_key(key, steps + 1)
    rows = []
    # In whatever mode the caller is, one training: and optax knows no strict promotion.
    with (
        races.keys.partitionable_bits(),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
    ):
        order = jax.random.permutation(order_key, images.shape[0])
        for at, step_key in enumerate(step_keys):
            chosen = order[at * size : (at + 1) * size]
            state, row = _step(
                state,
                images,
                chosen,
                step_key,
                beta,
                learning_rate,
                graph=graph,
                crop=config.side_shape[0],
            )
            rows.append(row)
    return state, Losses(
        *(float(np.mean(values)) for values in zip(*jax.device_get(rows), strict=True))
    )


@partial(jax.jit, static_argnames=("graph", "crop"), donate_argnames="state")
def _step(state, images, chosen, key, beta, learning_rate, *, graph, crop: int):
    crop_key, latent_key, dropout_key = races.split_key(key, 3)
    left, source = halves(images[chosen])
    side = crops(crop_key, left, 1, crop)[:, 0]

    def loss(params):
        row = _losses(nnx.merge(graph, params), source, side, latent_key, dropout_key)
        squared_error, kl, cross_entropy = row
        return squared_error * source[0].size + beta * kl + cross_entropy, row

    gradients, row = jax.grad(loss, has_aux=True)(state["params"])
    updates, adam = optax.adam(learning_rate, 0.9, 0.99).update(
        gradients, state["adam"], state["params"]
    )
    return {"params": optax.apply_updates(state["params"], updates), "adam": adam}, row


def _losses(
    vae: ImageVae, source, side, latent_key, dropout_key
) -> tuple[jax.Array, jax.Array, jax.Array]:
    mean, variance = vae.encode(source)
    latent = mean + jnp.sqrt(variance) * jax.random.normal(latent_key, mean.shape, jnp.float32)
    features = vae.project(side)
    estimate = vae.reconstruct(latent, features, dropout_key)
    one = vae.score(features, latent)
    two = vae.score(
        jnp.roll(features, 1, 0), latent
    )  # the order is random: a neighbour is another image's
    return (
        jnp.mean(jnp.square(estimate - source)),
        jnp.mean(jnp.sum(jnp.square(mean) + variance - jnp.log(variance) - 1, -1)) / 2,
        jnp.mean(jax.nn.softplus(-one) + jax.nn.softplus(two)) / 2,
    )


def _checked(
    images: np.ndarray, config: VaeConfig, batch: int, beta: float, learning_rate: float
) -> np.ndarray:
    for name, value in (("beta", beta), ("learning_rate", learning_rate)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    images = np.asarray(images, np.float32)
    left, right = halves(images)
    if right.shape[1:] != config.source_shape:
        wanted = " x ".join(map(str, config.source_shape))
        raise ValueError(
            f"images: expected right halves of {wanted}, got {' x '.join(map(str, right.shape[1:]))}"
        )
    size, width, colours = config.side_shape
    if size != width or colours != images.shape[3] or size > min(left.shape[1:3]):
        raise ValueError(
            f"side_shape: expected a square that fits left halves of {left.shape[1:]}, got {config.side_shape}"
        )
    if min(checks.count(batch, "batch"), len(images)) < 2:
        raise ValueError(
            f"batch: expected at least two images a step, got a batch of {batch} and {len(images)} images"
        )
    if not (np.abs(images) <= 1).all():
        raise ValueError("images: expected values within [-1, 1], got others")
    return images


def _found(folder: Path, asked: dict, epochs: int, resume: bool) -> tuple[int, list[Losses]]:
    """Epochs that are done, and their losses."""
    found = checkpoints.find(folder)
    if found is None:
        return 0, []
    if not resume:
        raise ValueError(
            f"{folder}: a training run is here; --resume goes on with it, else give another folder"
        )
    before = found.about["asked"]
    # Written as JSON, where a tuple comes back as a list.
    other = [
        name for name, value in json.loads(json.dumps(asked)).items() if before.get(name) != value
    ]
    if other:
        raise ValueError(
            f"{folder}: the training run here was asked something else ({', '.join(other)}); give another folder"
        )
    if found.epoch > epochs:
        raise ValueError(
            f"{folder}: the training run here has {found.epoch} epochs, more than the {epochs} asked for"
        )
    return found.epoch, [Losses(*row) for row in found.about["losses"]]
