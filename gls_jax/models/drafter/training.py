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

from gls_jax import races
from gls_jax.drafter_options import DrafterTraining
from gls_jax.models import training_checkpoints
from gls_jax.models.drafter.evaluation import (
    Constants,
    Validation,
    has_state,
    norm_factor,
    target_log_probs,
    validate,
)
from gls_jax.models.drafter.first_weights import first_network, head_tokens
from gls_jax.models.drafter.network import DrafterNetwork
from gls_jax.models.drafter.objectives import Objective, parse_objective
from gls_jax.models.drafter.text_batches import padded_batch, split_texts, text_batches
from gls_jax.models.drafter.text_features import (
    TextFeatures,
    check_observed_layers,
    weights_hash,
)
from gls_jax.models.drafter.unrolled import unrolled_states
from gls_jax.models.transformer import Transformer
from gls_jax.runs import files
from gls_jax.runs.resume import check_resumable, configuration_hash, differing_entries
from gls_jax.typing import Progress

__all__ = ["TrainedDrafter", "train_drafter"]

_RUN = "a training run of a drafter"
_METADATA_FIELDS = {"configuration", "validations"}
# Share of the steps in which the learning rate rises.
_WARM_UP = 0.05
_LARGEST_GRADIENT = 1.0


class TrainedDrafter(NamedTuple):
    """Result of training.

    Attributes:
        network: with the best weights of all validations.
        last: with the weights after the last step.
        tokens: `i32[R]`, of its head.
        coverage: share of the target's mass on the held-out texts that these tokens have.
        validations: in order; the first is before the training.
    """

    network: DrafterNetwork
    last: DrafterNetwork
    tokens: np.ndarray
    coverage: float
    validations: list[Validation]


def train_drafter(
    folder: str | Path,
    target: Transformer,
    texts: TextFeatures,
    observed_layers: Sequence[int],
    options: DrafterTraining,
    *,
    start: DrafterNetwork | None = None,
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
        start: a drafter trained before on the same texts with the same seed, which is trained
            further; None starts from layers of the target.
        resume: continue the run in the folder.
        progress: called with `(steps done, steps)`.

    Returns:
        The drafter with the best and with the last weights.

    Raises:
        ValueError: options out of range, too few texts, a run in the folder without `resume` or of
            another configuration, or a loss that is not finite.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    options.check()
    parse_objective(options.loss)
    observed_layers = check_observed_layers(observed_layers, target.config.num_layers)
    width = len(observed_layers) * target.config.hidden_size
    if texts.features.shape[1] != width:
        raise ValueError(
            f"texts: expected features of {len(observed_layers)} layers, {width} numbers a token, "
            f"got {texts.features.shape[1]}"
        )
    training_texts, held_out = split_texts(texts, options)
    tokens, coverage = head_tokens(target, texts, training_texts, held_out, options.head_tokens)
    network = first_network(target, observed_layers, tokens, options.layers, options.seed)
    if start is not None:
        _check_start(start, network)
        network = start
    configuration = _configuration(target, texts, observed_layers, options, start)

    # The trained weights, and those that are the target's.
    graph, *parts = nnx.split(network, _is_trained, ...)
    trained, frozen = parts
    # A copy: training takes over the memory of these weights, which may be the target's or `start`.
    trained = jax.tree.map(jnp.copy, trained)
    constants = Constants(frozen, norm_factor(target))
    batches = text_batches(texts, training_texts, options.batch_tokens)
    num_steps = options.epochs * len(batches)
    optimizer = _optimizer(options, num_steps)
    state = {"trained": trained, "best": trained, "optimizer": optimizer.init(trained)}
    validated = partial(validate, graph, constants, texts, held_out, options)

    done, validations = _previous_steps(folder, configuration, resume)
    if done:
        state = training_checkpoints.restore(folder, done, state)
    else:
        validations = [validated(trained, 0)]
    train_step = partial(_train_step, graph, optimizer, options)
    train = jax.jit(train_step, donate_argnums=(0, 1))
    key = races.new_key(options.seed)

    def train_until(last: int, trained, optimizer_state):
        """The steps up to `last`; the same whether or not training was resumed before them."""
        for step in range(done, last):
            epoch, index = divmod(step, len(batches))
            order = np.random.default_rng([options.seed, epoch]).permutation(len(batches))
            batch = padded_batch(texts, batches[order[index]])
            step_key = jax.random.fold_in(key, step)
            trained, optimizer_state, loss = train(
                trained, optimizer_state, constants, batch, step_key
            )
            if progress is not None:
                progress(step + 1, num_steps)
        if not np.isfinite(float(loss)):
            raise ValueError(
                f"training: expected a finite loss, got {float(loss)} in step {last}; "
                "try a smaller learning rate"
            )
        return trained, optimizer_state

    while done < num_steps and not _has_ended(validations, options.patience):
        next_stop = min(num_steps, done + options.validation_steps)
        # The best weights may be the newest ones, whose buffers the next step takes over.
        state["best"] = jax.tree.map(jnp.copy, state["best"])
        trained, optimizer_state = train_until(next_stop, state["trained"], state["optimizer"])
        done = next_stop
        validations.append(validated(trained, done))
        is_best = validations[-1].length >= max(row.length for row in validations)
        best = trained if is_best else state["best"]
        state = {"trained": trained, "best": best, "optimizer": optimizer_state}
        metadata = {
            "configuration": configuration,
            "validations": [list(row) for row in validations],
        }
        training_checkpoints.save(folder, done, state, metadata)
    return TrainedDrafter(
        network=nnx.merge(graph, state["best"], frozen),
        last=nnx.merge(graph, state["trained"], frozen),
        tokens=tokens,
        coverage=coverage,
        validations=validations,
    )


def _check_start(start: DrafterNetwork, expected: DrafterNetwork) -> None:
    """Refuse a drafter that cannot be trained further with these options."""
    if not isinstance(start, DrafterNetwork):
        raise ValueError(f"start: expected a DrafterNetwork, got {type(start).__name__}")
    if start.config != expected.config or not jnp.array_equal(start.head[...], expected.head[...]):
        raise ValueError(
            "start: expected a drafter of these options and this target, with the same output "
            "head (from these texts and this seed), got another one"
        )


def _configuration(
    target: Transformer,
    texts: TextFeatures,
    observed_layers: Sequence[int],
    options: DrafterTraining,
    start: DrafterNetwork | None,
) -> dict[str, Any]:
    """Everything that the result depends on, as JSON."""
    configuration = dataclasses.asdict(options) | {
        "observed_layers": list(observed_layers),
        "texts": configuration_hash(len(texts.tokens), texts.starts, texts.tokens),
        "target": weights_hash(target),
    }
    if start is not None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(start))]
        configuration["start"] = configuration_hash(len(leaves), *leaves)
    return configuration


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
    graph, optimizer, options: DrafterTraining, trained, state, constants: Constants, batch, key
):
    """One step of the optimiser: the new weights and state, and the loss before it."""
    objective = parse_objective(options.loss)

    def loss_of(trained):
        network = nnx.merge(graph, trained, constants.frozen)
        log_q = target_log_probs(network, constants.norm, batch)
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
    counts = has_state(log_q.shape[1], lengths, step).ravel()
    flat = (-1, log_p.shape[-1])
    return objective.mean(key, log_p.reshape(flat), log_q.reshape(flat), counts)


def _has_ended(validations: list[Validation], patience: int) -> bool:
    """Whether none of the last validations was better than the best one before them."""
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
