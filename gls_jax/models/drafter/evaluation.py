"""How often the target accepts the drafts of a drafter, on texts that are held out."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gls_jax import checks
from gls_jax.drafter_options import DrafterTraining
from gls_jax.models.drafter.network import DrafterNetwork
from gls_jax.models.drafter.objectives import overlap
from gls_jax.models.drafter.text_batches import Batch, padded_batch, split_texts, text_batches
from gls_jax.models.drafter.text_features import TextFeatures
from gls_jax.models.drafter.unrolled import unrolled_states
from gls_jax.models.layers import rms_normalised
from gls_jax.models.transformer import Transformer

__all__ = [
    "Constants",
    "HeldOut",
    "Validation",
    "has_state",
    "held_out_distributions",
    "norm_factor",
    "target_log_probs",
    "validate",
]

# Tokens in a step of validation.
_VALIDATION_TOKENS = 4096


class Validation(NamedTuple):
    """Figures on the held-out texts.

    Attributes:
        step: steps of the optimiser before it.
        acceptance: ``1 - TV`` at each step ahead, over the whole vocabulary.
        length: sum of the products of these acceptances up to each step. It compares weights. It
            is not the mean length of accepted chains: acceptances in a text are not independent.
    """

    step: int
    acceptance: tuple[float, ...]
    length: float


class Constants(NamedTuple):
    """What training does not change.

    Attributes:
        frozen: the target's embedding and head, as parameters of the network.
        norm: `f32[M]`, factor of the target's last norm.
    """

    frozen: Any
    norm: Array


class HeldOut(NamedTuple):
    """Distributions at some positions of held-out texts.

    The last of the ``R + 1`` categories stands for all tokens that the head does not have.

    Attributes:
        log_p: `f32[S, M, R + 1]`, of the drafter, S steps ahead.
        log_q: `f32[M, R + 1]`, of the target.
        texts: `i64[M]`, number of the text that each position is in.
    """

    log_p: np.ndarray
    log_q: np.ndarray
    texts: np.ndarray


def validate(graph, constants: Constants, texts, held_out, options, trained, step) -> Validation:
    """Acceptance of single drafts on the held-out texts, by step ahead."""
    sums = np.zeros((options.steps_ahead, 2))
    for rows in text_batches(texts, held_out, _VALIDATION_TOKENS):
        batch_sums = _accepted(
            graph, constants, options.steps_ahead, trained, padded_batch(texts, rows)
        )
        sums += np.asarray(batch_sums)
    acceptance = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return Validation(step, tuple(map(float, acceptance)), float(np.sum(np.cumprod(acceptance))))


@partial(jax.jit, static_argnames=("graph", "num_steps"))
def _accepted(graph, constants: Constants, num_steps: int, trained, batch: Batch):
    """Sum of the acceptance and number of positions at each step ahead, `[num_steps, 2]`."""
    network = nnx.merge(graph, trained, constants.frozen)
    log_q = target_log_probs(network, constants.norm, batch)
    sums = []
    for step, states in enumerate(
        unrolled_states(network, batch.tokens, batch.features, num_steps)
    ):
        log_p = jax.nn.log_softmax(network.logits(states), axis=-1)
        counts = has_state(log_q.shape[1], batch.lengths, step)
        sums.append([jnp.sum(counts * overlap(log_p, log_q)), jnp.sum(counts)])
    return jnp.asarray(sums)


def held_out_distributions(
    network: DrafterNetwork,
    target: Transformer,
    texts: TextFeatures,
    options: DrafterTraining,
    num_positions: int,
) -> HeldOut:
    """Distributions of drafter and target at random positions of the held-out texts.

    Args:
        network: the drafter.
        target: its target.
        texts: from :func:`gls_jax.models.drafter.read_texts`.
        options: of the training: its seed says which texts are held out.
        num_positions: how many, or all if there are fewer.

    Raises:
        ValueError: no positions, or held-out texts that are all shorter than the steps ahead.
    """
    checks.count(num_positions, "num_positions")
    _, held_out = split_texts(texts, options)
    # Every position at which the last step has a state, as rows (text, position).
    places = [
        (text, position)
        for text in held_out
        for position in range(options.steps_ahead - 1, texts.starts[text + 1] - texts.starts[text])
    ]
    if not places:
        raise ValueError(
            f"texts: expected held-out ones of at least {options.steps_ahead} tokens, got none"
        )
    order = np.random.default_rng(options.seed).permutation(len(places))
    chosen = np.array(places)[np.sort(order[:num_positions])]

    # One text at a time: the distributions of all positions would take much memory.
    graph, params = nnx.split(network)
    norm = norm_factor(target)
    log_p, log_q = [], []
    for text in np.unique(chosen[:, 0]):
        positions = chosen[chosen[:, 0] == text, 1]
        batch = padded_batch(texts, np.array([text]))
        of_drafter, of_target = _distributions(graph, options.steps_ahead, params, norm, batch)
        log_p.append(np.asarray(of_drafter[:, 0, positions]))
        log_q.append(np.asarray(of_target[0, positions]))
    return HeldOut(np.concatenate(log_p, axis=1), np.concatenate(log_q), chosen[:, 0])


@partial(jax.jit, static_argnames=("graph", "num_steps"))
def _distributions(graph, num_steps: int, params, norm, batch: Batch):
    """Log-probabilities with the others, of the drafter `[S, B, T, R + 1]` and of the target."""
    network = nnx.merge(graph, params)
    log_q = target_log_probs(network, norm, batch)
    log_others = jnp.log1p(-jnp.minimum(jnp.sum(jnp.exp(log_q), -1, keepdims=True), 1 - 1e-6))
    all_states = unrolled_states(network, batch.tokens, batch.features, num_steps)
    log_p = jax.nn.log_softmax(network.logits(jnp.stack(all_states)), axis=-1)
    log_p = jnp.pad(log_p, [(0, 0)] * (log_p.ndim - 1) + [(0, 1)], constant_values=-jnp.inf)
    log_q = jnp.concatenate([log_q, log_others], axis=-1)
    return log_p, jax.nn.log_softmax(log_q, axis=-1)


def norm_factor(target: Transformer) -> Float[Array, " m"]:
    """The factor of the target's last norm."""
    return target.norm.offset + target.norm.weight[...].astype(jnp.float32)


def target_log_probs(
    network: DrafterNetwork, norm: Float[Array, " m"], batch: Batch
) -> Float[Array, "b t r"]:
    """The target's log-probabilities of the tokens of the head."""
    config = network.config.layers
    # The last features are the output of the target's last layer, but for its norm.
    last = batch.features[..., -config.hidden_size :].astype(jnp.float32)
    hidden = rms_normalised(last, config.norm_eps) * norm
    logits = network.head_logits(hidden)
    return jax.lax.stop_gradient(logits - batch.log_totals[..., None])


def has_state(num_positions: int, lengths, step: int):
    """Whether a position of a text has a state at this step, `bool[B, T]`, counted from 0."""
    positions = jnp.arange(num_positions)
    return (positions >= step) & (positions < lengths[:, None])
