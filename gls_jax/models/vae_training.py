"""Joint training of the image VAE: squared error + beta KL + the estimator's cross-entropy."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gls_jax import checks, races
from gls_jax.compression.images.image_checks import check_pixels, size_text
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.models import training_checkpoints, vae_checkpoints
from gls_jax.models.vae import ImageVae, VaeConfig, image_model, new_vae
from gls_jax.runs import files
from gls_jax.runs.resume import check_resumable, differing_entries
from gls_jax.typing import Progress

__all__ = ["Losses", "Trained", "train_vae"]


class Losses(NamedTuple):
    """Means over an epoch.

    Attributes:
        squared_error: per pixel, in units of the range [-1, 1].
        kl: of the encoder's distribution from the prior, nats per image.
        cross_entropy: of the estimator, nats per pair; guessing gives log 2.
    """

    squared_error: float
    kl: float
    cross_entropy: float


class Trained(NamedTuple):
    """Result of training: the model, and the losses of every epoch."""

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
    progress: Progress | None = None,
) -> Trained:
    """Train an image model, and write a checkpoint to a folder after every epoch.

    The right half of each image is the source. The side information is a random crop of its left
    half, a new one in every epoch. The loss is the sum of the squared error over the pixels, `beta`
    times the Kullback-Leibler divergence of the encoder's distribution from N(0, I), and the
    estimator's cross-entropy on pairs (w, features) of one image against pairs of two images.

    Every epoch has a separate key, so that a run that was killed and resumed gives the same
    weights as one that was not.

    Args:
        folder: made if missing; holds the newest checkpoint.
        images: `[n, height, width, channels]` in [-1, 1], whole images.
        config: sizes; `VaeConfig.of_images` fits them to the images.
        beta: weight of the divergence: the larger, the fewer bits the latent holds.
        epochs: passes over the images; those that do not fill a batch are left out of a pass.
        seed: of weights, order, crops, latents and dropout, 0 to 2^32 - 1.
        batch: images per step.
        learning_rate: of Adam.
        resume: continue the run in the folder; a finished run may be given more epochs.
        progress: called with `(epochs done, epochs)`.

    Returns:
        `Trained(model, losses)`.

    Raises:
        ValueError: sizes that do not fit, a run in the folder without `resume` or with another
            configuration, or a loss that is not finite.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    images = _check_input(images, config, batch, beta, learning_rate)
    checks.count(epochs, "epochs")
    checks.seed(seed)
    # All that the weights depend on, except for the number of epochs.
    run_config = {
        "config": dataclasses.asdict(config),
        "beta": float(beta),
        "seed": int(seed),
        "batch": int(batch),
        "learning_rate": float(learning_rate),
        "images": hashlib.sha256(repr(images.shape).encode() + images.tobytes()).hexdigest(),
    }
    num_done, losses = _previous_epochs(folder, run_config, epochs, resume)
    files.check_folder(folder)
    # The initial weights come from the private fold of the seed's key, each epoch from the fold of
    # its number.
    key = races.new_key(seed)
    graph, params = nnx.split(new_vae(config, races.private_key(key)))
    state = {"params": params, "adam": _adam(learning_rate).init(params)}
    if num_done:
        state = training_checkpoints.restore(folder, num_done, state)
    device_images = jnp.asarray(images)
    for epoch in range(num_done, epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        state, epoch_losses = _train_epoch(
            graph, state, device_images, epoch_key, config, beta, batch, learning_rate
        )
        if not all(map(np.isfinite, epoch_losses)):
            raise ValueError(
                f"training: expected finite losses, got {epoch_losses} in epoch {epoch + 1}; "
                "try a smaller learning rate"
            )
        losses.append(epoch_losses)
        metadata = {
            vae_checkpoints.RUN_CONFIGURATION: run_config,
            "config": run_config["config"],
            "epochs": epochs,
            "losses": [list(row) for row in losses],
        }
        training_checkpoints.save(folder, epoch + 1, state, metadata)
        if progress is not None:
            progress(epoch + 1, epochs)
    return Trained(image_model(nnx.merge(graph, state["params"]), config), losses)


def _train_epoch(
    graph, state, images, key, config: VaeConfig, beta: float, batch: int, learning_rate: float
) -> tuple[dict[str, Any], Losses]:
    """State after an epoch, and its mean losses."""
    num_images = images.shape[0]
    batch_size = min(batch, num_images)
    num_steps = num_images // batch_size
    order_key, *step_keys = races.split_key(key, num_steps + 1)
    step_losses = []
    # The caller's JAX modes must not change the weights, and optax fails under strict promotion.
    with (
        races.keys.partitionable_bits(),
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
    ):
        order = jax.random.permutation(order_key, num_images)
        # One call per step: inside `lax.scan`, XLA:CPU runs convolutions 5 to 20 times slower.
        for step, step_key in enumerate(step_keys):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            state, losses = _step(
                state,
                images,
                chosen,
                step_key,
                beta,
                learning_rate,
                graph=graph,
                crop=config.side_shape[0],
            )
            step_losses.append(losses)
    # One transfer for the whole epoch, so that steps do not wait for it.
    by_kind = zip(*jax.device_get(step_losses), strict=True)
    return state, Losses(*[float(np.mean(values)) for values in by_kind])


@partial(jax.jit, static_argnames=("graph", "crop"), donate_argnames="state")
def _step(state, images, chosen, key, beta, learning_rate, *, graph, crop: int):
    """State after one step of Adam on the `chosen` images, and the three losses before it."""
    crop_key, latent_key, dropout_key = races.split_key(key, 3)
    left, source = halves(images[chosen])
    side = crops(crop_key, left, 1, crop)[:, 0]

    def loss(params):
        vae = nnx.merge(graph, params)
        loss_terms = _losses(vae, source, side, latent_key, dropout_key)
        squared_error, kl, cross_entropy = loss_terms
        # The mean over pixels and colours, back to their sum.
        return squared_error * source[0].size + beta * kl + cross_entropy, loss_terms

    gradients, losses = jax.grad(loss, has_aux=True)(state["params"])
    updates, adam_state = _adam(learning_rate).update(gradients, state["adam"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "adam": adam_state}, losses


def _adam(learning_rate):
    """Adam with the decay rates of the GLS paper."""
    return optax.adam(learning_rate, 0.9, 0.99)


def _losses(
    vae: ImageVae, source, side, latent_key, dropout_key
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means over a batch: squared error, KL divergence, cross-entropy of the estimator."""
    mean, variance = vae.encode(source)
    latent = mean + jnp.sqrt(variance) * jax.random.normal(latent_key, mean.shape, jnp.float32)
    features = vae.project(side)
    estimate = vae.reconstruct(latent, features, dropout_key)
    same_image = vae.score(features, latent)
    # The order of the images is random, so a neighbour is an independent image.
    other_image = vae.score(jnp.roll(features, 1, 0), latent)
    squared_error = jnp.mean(jnp.square(estimate - source))
    kl_terms = jnp.square(mean) + variance - jnp.log(variance) - 1
    kl = jnp.mean(jnp.sum(kl_terms, -1)) / 2
    cross_entropies = jax.nn.softplus(-same_image) + jax.nn.softplus(other_image)
    return squared_error, kl, jnp.mean(cross_entropies) / 2


def _check_input(
    images: np.ndarray, config: VaeConfig, batch: int, beta: float, learning_rate: float
) -> np.ndarray:
    """Validate the arguments of training; the images as float32."""
    for name, value in (("beta", beta), ("learning_rate", learning_rate)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: expected a positive number, got {value}")
    images = np.asarray(images, np.float32)
    left, right = halves(images)
    if right.shape[1:] != config.source_shape:
        raise ValueError(
            f"images: expected right halves of {size_text(config.source_shape)}, "
            f"got {size_text(right.shape[1:])}"
        )
    crop = config.side_shape[0]
    square = (crop, crop, images.shape[3])
    if config.side_shape != square or crop > min(left.shape[1:3]):
        raise ValueError(
            f"side_shape: expected a square that fits left halves of {left.shape[1:]}, "
            f"got {config.side_shape}"
        )
    # The estimator compares two images of a batch.
    if min(checks.count(batch, "batch"), len(images)) < 2:
        raise ValueError(
            f"batch: expected at least two images per step, "
            f"got a batch of {batch} and {len(images)} images"
        )
    check_pixels(images, "images")
    return images


def _previous_epochs(
    folder: Path, run_config: dict, epochs: int, resume: bool
) -> tuple[int, list[Losses]]:
    """Number of finished epochs of the run in the folder, and their losses."""
    newest = vae_checkpoints.find(folder)
    if newest is None:
        return 0, []
    stored_config = newest.metadata[vae_checkpoints.RUN_CONFIGURATION]
    check_resumable(
        folder,
        "a training run",
        resume=resume,
        differences=differing_entries(stored_config, run_config),
    )
    if newest.step > epochs:
        raise ValueError(
            f"{folder}: the training run here has {newest.step} epochs, "
            f"more than the {epochs} requested"
        )
    return newest.step, [Losses(*row) for row in newest.metadata["losses"]]
