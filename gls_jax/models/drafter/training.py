"""Training of a drafter on texts that its target has read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from gls_jax import races
from gls_jax.drafter_options import DrafterTraining
from gls_jax.models import training_checkpoints
from gls_jax.models.drafter.first_weights import first_network, head_tokens
from gls_jax.models.drafter.network import DrafterNetwork
from gls_jax.models.drafter.objectives import Objective, overlap, parse_objective
from gls_jax.models.drafter.text_features import TextFeatures, padded_length
from gls_jax.models.drafter.unrolled import unrolled_states
from gls_jax.models.layers import rms_normalised
from gls_jax.models.transformer import Transformer
from gls_jax.runs import files
from gls_jax.runs.resume import check_resumable, configuration_hash, differing_entries
from gls_jax.typing import Progress

__all__ = ["TrainedDrafter", "Validation", "train_drafter"]

_RUN = "a training run of a drafter"
_METADATA_FIELDS = {"configuration", "validations"}
# Share of the steps in which the learning rate rises.
_WARM_UP = 0.05
_LARGEST_GRADIENT = 1.0
# Texts side by side that are held out together: the replies to one prompt are alike.
_TEXTS_OF_PROMPT = 2
# Tokens in a step of validation.
_VALIDATION_TOKENS = 4096


class Validation(NamedTuple):
    """Figures on the held-out texts.

    Attributes:
        step: steps of the optimiser before it.
        acceptance: ``1 - TV`` at each step ahead, over the whole vocabulary.
        length: expected number of accepted drafts of a chain as long as the steps ahead.
    """

    step: int
    acceptance: tuple[float, ...]
    length: float


class TrainedDrafter(NamedTuple):
    """Result of training.

    Attributes:
        network: with the best weights of all validations.
        tokens: `i32[R]`, of its head.
        coverage: share of the target's mass on the held-out texts that these tokens have.
        validations: in order; the first is before the training.
    """

    network: DrafterNetwork
    tokens: np.ndarray
    coverage: float
    validations: list[Validation]


class _Batch(NamedTuple):
    """Padded texts: `[B, T]` tokens, `[B, T, W]` features, `[B, T]` log-totals, `[B]` lengths."""

    tokens: Array
    features: Array
    log_totals: Array
    lengths: Array


class _Constants(NamedTuple):
    """What training does not change.

    Attributes:
        frozen: the target's embedding and head, as parameters of the network.
        norm: `f32[M]`, factor of the target's last norm.
    """

    frozen: Any
    norm: Array


def train_drafter(
    folder: str | Path,
    target: Transformer,
    texts: TextFeatures,
    observed_layers: Sequence[int],
    options: DrafterTraining,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainedDrafter:
    """Train a drafter that observes its target, and write a checkpoint at every validation.

    A run that was killed and resumed gives the same weights as one that was not.

    Args:
        folder: made if missing; holds the newest checkpoint.
        target: the target. Embedding and output head are taken from it, and are not trained.
        texts: from :func:`gls_jax.models.drafter.read_texts`, with the same layers.
        observed_layers: indices of the target's layers that the drafter observes.
        options: how it is trained.
        resume: continue the run in the folder.
        progress: called with `(steps done, steps)`.

    Returns:
        The drafter with the best weights.

    Raises:
        ValueError: options out of range, too few texts, a run in the folder without `resume` or of
            another configuration, or a loss that is not finite.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    options.check()
    parse_objective(options.loss)
    training_texts, held_out = _split(texts, options)
    tokens, coverage = head_tokens(target, texts, training_texts, held_out, options.head_tokens)
    network = first_network(target, observed_layers, tokens, options.layers, options.seed)
    configuration = dataclasses.asdict(options) | {
        "observed_layers": list(observed_layers),
        "texts": configuration_hash(len(texts.tokens), texts.starts, texts.tokens),
    }

    # The trained weights, and those that are the target's.
    graph, *parts = nnx.split(network, _is_trained, ...)
    trained, frozen = parts
    norm = target.norm.offset + target.norm.weight[...].astype(jnp.float32)
    constants = _Constants(frozen, norm)
    batches = _batches(texts, training_texts, options.batch_tokens)
    num_steps = options.epochs * len(batches)
    optimizer = _optimizer(options, num_steps)
    state = {"trained": trained, "best": trained, "optimizer": optimizer.init(trained)}
    validate = partial(_validate, graph, constants, texts, held_out, options)

    done, validations = _previous_steps(folder, configuration, resume)
    if done:
        state = training_checkpoints.restore(folder, done, state)
    else:
        validations = [validate(trained, 0)]
    train_step = partial(_train_step, graph, constants, optimizer, options)
    train = jax.jit(train_step, donate_argnums=(0, 1))
    key = races.new_key(options.seed)
    while done < num_steps and not _has_ended(validations, options.patience):
        next_stop = min(num_steps, done + options.validation_steps)
        trained, optimizer_state = state["trained"], state["optimizer"]
        # The best weights may be the newest ones, whose buffers the next step takes over.
        state["best"] = jax.tree.map(jnp.copy, state["best"])
        for step in range(done, next_stop):
            epoch, index = divmod(step, len(batches))
            order = np.random.default_rng([options.seed, epoch]).permutation(len(batches))
            batch = _batch(texts, batches[order[index]])
            step_key = jax.random.fold_in(key, step)
            trained, optimizer_state, loss = train(trained, optimizer_state, batch, step_key)
            if progress is not None:
                progress(step + 1, num_steps)
        if not np.isfinite(float(loss)):
            raise ValueError(
                f"training: expected a finite loss, got {float(loss)} in step {next_stop}; "
                "try a smaller learning rate"
            )
        done = next_stop
        validations.append(validate(trained, done))
        is_best = validations[-1].length >= max(row.length for row in validations)
        best = trained if is_best else state["best"]
        state = {"trained": trained, "best": best, "optimizer": optimizer_state}
        metadata = {
            "configuration": configuration,
            "validations": [list(row) for row in validations],
        }
        training_checkpoints.save(folder, done, state, metadata)
    network = nnx.merge(graph, state["best"], frozen)
    return TrainedDrafter(network, tokens, coverage, validations)


def _is_trained(path, _) -> bool:
    return path[0] not in ("embedding", "head")


def _optimizer(options: DrafterTraining, num_steps: int) -> optax.GradientTransformation:
    warm_up = max(1, int(_WARM_UP * num_steps))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        options.learning_rate,
        warm_up,
        max(num_steps, warm_up + 1),
        end_value=options.learning_rate / 20,
    )
    return optax.chain(
        optax.clip_by_global_norm(_LARGEST_GRADIENT),
        optax.adamw(schedule, b2=0.98, weight_decay=options.weight_decay),
    )


def _train_step(
    graph, constants: _Constants, optimizer, options: DrafterTraining, trained, state, batch, key
):
    """One step of the optimiser: the new weights and state, and the loss before it."""
    objective = parse_objective(options.loss)

    def loss_of(trained):
        network = nnx.merge(graph, trained, constants.frozen)
        log_q = _target_log_probs(network, constants, batch)
        all_states = unrolled_states(
            network, batch.tokens, batch.features, num_steps=options.steps_ahead
        )
        total = 0.0
        weight = 1.0
        for step, states in enumerate(all_states):
            step_loss = partial(_step_loss, objective, step)
            # The log-probabilities are computed again for the gradient; all would take much memory.
            loss = jax.checkpoint(step_loss)(
                network, jax.random.fold_in(key, step), states, log_q, batch.lengths
            )
            total += weight * loss
            weight *= options.depth_weight
        return total

    loss, gradient = jax.value_and_grad(loss_of)(trained)
    updates, state = optimizer.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state, loss


def _step_loss(objective: Objective, step: int, network, key, states, log_q, lengths):
    """Mean loss of one step ahead."""
    log_p = jax.nn.log_softmax(network.logits(states), axis=-1)
    counts = _counts(log_q.shape[1], lengths, step).ravel()
    flat = (-1, log_p.shape[-1])
    return objective.mean(key, log_p.reshape(flat), log_q.reshape(flat), counts)


def _target_log_probs(
    network: DrafterNetwork, constants: _Constants, batch: _Batch
) -> Float[Array, "b t r"]:
    """The target's log-probabilities of the tokens of the head."""
    config = network.config.layers
    # The last features are the output of the target's last layer, but for its norm.
    last = batch.features[..., -config.hidden_size :].astype(jnp.float32)
    hidden = rms_normalised(last, config.norm_eps) * constants.norm
    logits = network.head_logits(hidden)
    return jax.lax.stop_gradient(logits - batch.log_totals[..., None])


def _counts(num_positions: int, lengths, step: int):
    """Whether a position of a text has a state at this step, `bool[B, T]`; step 0 is the first."""
    positions = jnp.arange(num_positions)
    return (positions >= step) & (positions < lengths[:, None])


def _validate(graph, constants: _Constants, texts, held_out, options, trained, step) -> Validation:
    """Acceptance of single drafts on the held-out texts, by step ahead."""
    sums = np.zeros((options.steps_ahead, 2))
    for rows in _batches(texts, held_out, _VALIDATION_TOKENS):
        batch_sums = _accepted(graph, constants, options.steps_ahead, trained, _batch(texts, rows))
        sums += np.asarray(batch_sums)
    acceptance = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return Validation(step, tuple(map(float, acceptance)), float(np.sum(np.cumprod(acceptance))))


@partial(jax.jit, static_argnames=("graph", "num_steps"))
def _accepted(graph, constants: _Constants, num_steps: int, trained, batch: _Batch):
    """Sum of the acceptance and number of positions at each step ahead, `[num_steps, 2]`."""
    network = nnx.merge(graph, trained, constants.frozen)
    log_q = _target_log_probs(network, constants, batch)
    sums = []
    for step, states in enumerate(
        unrolled_states(network, batch.tokens, batch.features, num_steps)
    ):
        log_p = jax.nn.log_softmax(network.logits(states), axis=-1)
        counts = _counts(log_q.shape[1], batch.lengths, step)
        sums.append([jnp.sum(counts * overlap(log_p, log_q)), jnp.sum(counts)])
    return jnp.asarray(sums)


def _split(texts: TextFeatures, options: DrafterTraining) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the texts to train on, and of those that are held out."""
    num_texts = len(texts.starts) - 1
    num_groups = -(-num_texts // _TEXTS_OF_PROMPT)
    num_held_out = max(1, round(options.validation_share * num_groups))
    if num_groups <= num_held_out:
        raise ValueError(f"texts: expected more than {_TEXTS_OF_PROMPT}, got {num_texts}")
    held_out_groups = np.random.default_rng(options.seed).permutation(num_groups)[:num_held_out]
    is_held_out = np.isin(np.arange(num_texts) // _TEXTS_OF_PROMPT, held_out_groups)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _batches(texts: TextFeatures, numbers: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Texts of about equal length in batches of at most `batch_tokens` tokens, padding included."""
    lengths = np.diff(texts.starts)[numbers]
    order = numbers[np.argsort(lengths, kind="stable")]
    batches = []
    end = len(order)
    # From the longest down, so that the first of a batch decides its length.
    while end > 0:
        longest = order[end - 1]
        length = padded_length(int(texts.starts[longest + 1] - texts.starts[longest]))
        size = max(1, batch_tokens // length)
        batches.append(order[max(0, end - size) : end])
        end -= size
    return batches


def _batch(texts: TextFeatures, numbers: np.ndarray) -> _Batch:
    """The texts of these numbers, padded with zeros."""
    starts, ends = texts.starts[numbers], texts.starts[numbers + 1]
    length = padded_length(int((ends - starts).max()))

    def padded(values):
        rows = np.zeros((len(numbers), length, *values.shape[1:]), values.dtype)
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            rows[row, : end - start] = values[start:end]
        return rows

    return _Batch(
        tokens=jnp.asarray(padded(texts.tokens)),
        features=jnp.asarray(padded(texts.features)),
        log_totals=jnp.asarray(padded(texts.log_totals)),
        lengths=jnp.asarray(ends - starts, jnp.int32),
    )


def _has_ended(validations: list[Validation], patience: int) -> bool:
    """Whether the last validations were all worse than the best one before them."""
    best = int(np.argmax([row.length for row in validations]))
    return len(validations) - 1 - best >= patience


def _previous_steps(
    folder: Path, configuration: dict, resume: bool
) -> tuple[int, list[Validation]]:
    """Number of steps of the run in the folder, and its validations."""
    files.check_folder(folder)
    newest = training_checkpoints.find(folder, _RUN, _METADATA_FIELDS)
    if newest is None:
        return 0, []
    earlier = newest.metadata["configuration"]
    check_resumable(
        folder, _RUN, resume=resume, differences=differing_entries(earlier, configuration)
    )
    rows = newest.metadata["validations"]
    return newest.step, [Validation(row[0], tuple(row[1]), row[2]) for row in rows]
