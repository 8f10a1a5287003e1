"""Which loss for which scheme: drafters trained further with each, and their acceptances.

All start from one drafter that was trained with `kl`, and are trained for as many steps on the same
batches. `kl` itself is among them, so that more training is not taken for a better loss. The
metrics are acceptances at the same held-out positions, so differences are paired. They are exact
but for that of `gumbel_topk`, see :func:`_gumbel_topk_acceptance`. Their error is
that over prompts, for the drafters that were trained; how much drafters of another seed differ is
seen from the differences of each seed.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import schemes
from gls_jax.drafter_options import TextSource
from gls_jax.exact import batched
from gls_jax.models import drafter
from gls_jax.models.drafter.text_batches import TEXTS_OF_PROMPT
from gls_jax.models.drafter.training_texts import replies_of_target
from gls_jax.models.model_pair import ModelPair
from gls_jax.schemes import gumbel_topk
from gls_jax.typing import Report

LOSSES = ("kl", "tv", "lk", "list:gls:8", "list:gumbel_topk:8")
# Scheme and list length of each metric; `single` is 1 - TV, and K = 1 is the coupled draft.
METRICS = (("single", 1), ("gls", 1), ("gls", 8), ("gumbel_topk", 8))
_PARTS_OF_TARGET = 64


class LossRow(NamedTuple):
    """Mean acceptance with one loss under one metric, and the paired difference to `kl`.

    Attributes:
        standard_error: of the difference, over prompts, given the drafters.
        by_seed: the difference for each seed.
    """

    loss: str
    scheme: str
    num_drafts: int
    acceptance: float
    difference: float
    standard_error: float
    by_seed: str


def compare(
    folder: Path,
    pair: ModelPair,
    *,
    num_texts: int,
    num_positions: int,
    seeds: int,
    report: Report,
) -> list[LossRow]:
    """Train with every loss and seed, and measure.

    Args:
        folder: for texts, features and checkpoints; what is there is not done again.
        pair: the target alone.
        num_texts: replies of the target that are trained on.
        num_positions: of held-out texts, for each seed.
        seeds: of weights, batches and held-out texts.
        report: progress.
    """
    source = TextSource(texts=num_texts)
    folder = folder / f"{num_texts}-texts"
    folder.mkdir(parents=True, exist_ok=True)
    texts = replies_of_target(folder, pair, source, seed=0, resume=True, progress=report)
    target = pair.target.model
    layers = drafter.default_observed_layers(pair.target.config.num_layers)
    features = drafter.read_texts(
        folder / "features",
        target,
        texts,
        layers,
        resume=True,
        progress=partial(report, "tokens read"),
    )
    train = partial(_train, folder, target, features, layers, report)
    values: dict[str, list[np.ndarray]] = {loss: [] for loss in LOSSES}
    clusters, seed_of = [], []
    for seed in range(seeds):
        options = drafter.DrafterTraining(
            seed=seed, epochs=6, validation_steps=20, head_tokens=4096, batch_tokens=2048
        )
        first = train(f"{seed}-start", options, None)
        further = dataclasses.replace(options, epochs=2, learning_rate=3e-4, patience=1000)
        for loss in LOSSES:
            name = f"{seed}-{loss.replace(':', '-')}"
            network = train(name, dataclasses.replace(further, loss=loss), first)
            held_out = drafter.held_out_distributions(
                network, target, features, options, num_positions
            )
            values[loss].append(_acceptances(held_out, report))
        # A cluster is a prompt: positions of its replies depend on one another, for all seeds.
        clusters.append(held_out.texts // TEXTS_OF_PROMPT)
        seed_of.append(np.full(len(held_out.texts), seed))
    groups = np.concatenate(clusters), np.concatenate(seed_of)
    by_loss = {loss: np.concatenate(parts, axis=1) for loss, parts in values.items()}
    return [
        _row(loss, metric, by_loss[loss][index], by_loss["kl"][index], *groups)
        for index, metric in enumerate(METRICS)
        for loss in LOSSES
    ]


def _train(folder: Path, target, features, layers, report: Report, name, options, start):
    """The weights of the last step: all losses then have as many steps behind them."""
    trained = drafter.train_drafter(
        folder / name,
        target,
        features,
        layers,
        options,
        start=start,
        resume=True,
        progress=partial(report, f"training {name}"),
    )
    return trained.last


def _acceptances(held_out: drafter.HeldOut, report: Report) -> np.ndarray:
    """Acceptance one step ahead, `[metrics, M]`."""
    log_p, log_q = jnp.asarray(held_out.log_p[0]), jnp.asarray(held_out.log_q)
    rows = []
    for number, (name, num_drafts) in enumerate(METRICS):
        report("acceptances", number, len(METRICS))
        if name == "gumbel_topk":
            rows.append(np.asarray(_gumbel_topk_acceptance(log_p, log_q, num_drafts)))
        else:
            curves = batched.acceptance_curves(schemes.get(name), log_p, log_q, [num_drafts])
            rows.append(np.asarray(curves)[:, 0])
    return np.stack(rows)


@partial(jax.jit, static_argnums=2)
def _gumbel_topk_acceptance(log_p, log_q, num_drafts: int):
    """Mean over tokens of the target, one in the middle of each of equal parts of its mass.

    The exact value of all positions would take minutes. The match probability falls in the order of
    the ratios, so the mean is within half a part of it, apart from the Poisson tail.
    """
    uniforms = (jnp.arange(_PARTS_OF_TARGET) + 0.5) / _PARTS_OF_TARGET

    def at_position(position):
        log_p, log_q = position
        of_parts = jax.vmap(gumbel_topk.sampled_acceptance, (0, None, None, None))
        return jnp.mean(of_parts(uniforms, log_p, log_q, num_drafts))

    return jax.lax.map(at_position, (log_p, log_q))


def _row(loss, metric, values: np.ndarray, of_kl: np.ndarray, cluster, seed_of) -> LossRow:
    scheme, num_drafts = metric
    difference = values - of_kl
    # The mean over positions has the error of sums over prompts.
    names = np.unique(cluster)
    centred = difference - difference.mean()
    sums = np.array([centred[cluster == name].sum() for name in names])
    error = np.sqrt(np.sum(sums**2)) / len(difference)
    return LossRow(
        loss=loss,
        scheme=scheme,
        num_drafts=num_drafts,
        acceptance=float(values.mean()),
        difference=float(difference.mean()),
        standard_error=float(error),
        by_seed=" ".join(
            f"{difference[seed_of == seed].mean():.4f}" for seed in np.unique(seed_of)
        ),
    )
