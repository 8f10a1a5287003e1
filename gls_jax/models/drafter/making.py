"""The whole job: texts, features, training, and the drafter's file with a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax.drafter_options import DrafterTraining, TextSource
from gls_jax.models.drafter.drafter_file import FILE_NAME, save_drafter
from gls_jax.models.drafter.first_weights import default_observed_layers
from gls_jax.models.drafter.text_features import check_observed_layers, read_texts
from gls_jax.models.drafter.training import train_drafter
from gls_jax.models.drafter.training_texts import pieces_of_plain_text, replies_of_target
from gls_jax.runs import files
from gls_jax.typing import Report

if TYPE_CHECKING:
    from gls_jax.models.model_pair import ModelPair

__all__ = ["make_drafter"]


def make_drafter(
    folder: str | Path,
    pair: ModelPair,
    source: TextSource,
    training: DrafterTraining,
    *,
    observed_layers: Sequence[int] | None = None,
    resume: bool = False,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Make a drafter for a target.

    The folder gets `prompts.jsonl` and `replies.jsonl`, the texts; `features/`, what the target
    makes of them; `checkpoints/`; and `drafter.safetensors`, `report.json` and `report.png`.

    Args:
        folder: made if missing.
        pair: the target alone, from ``load_pair(name, "none")``.
        source: where the texts come from.
        training: how the drafter is trained. Its seed is that of the texts, too.
        observed_layers: layers of the target whose outputs the drafter gets; None takes those after
            a third, two thirds and all of its depth.
        resume: continue the run in the folder.
        progress: called with the kind of work, and how much of it is done.

    Returns:
        The report, as in `report.json`.

    Raises:
        ValueError: options out of range, or a folder of another run.
        OSError: the folder cannot be written.
    """
    # Imported here, because only this function needs matplotlib: before the work, not after it.
    from gls_jax.studies import figures

    folder = Path(folder)
    source.check()
    training.check()
    target = pair.target
    num_layers = target.config.num_layers
    layers = check_observed_layers(
        observed_layers or default_observed_layers(num_layers), num_layers
    )
    files.check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report_progress = progress or _ignore_progress

    texts = replies_of_target(
        folder, pair, source, seed=training.seed, resume=resume, progress=progress
    )
    texts += pieces_of_plain_text(pair, source)
    features = read_texts(
        folder / "features",
        target.model,
        texts,
        layers,
        resume=resume,
        progress=partial(report_progress, "tokens read"),
    )
    trained = train_drafter(
        folder / "checkpoints",
        target.model,
        features,
        layers,
        training,
        resume=resume,
        progress=partial(report_progress, "training steps"),
    )
    report = {
        "target": pair.target_name,
        "texts": len(texts),
        "tokens": len(features.tokens),
        "observed_layers": list(layers),
        "head_coverage": trained.coverage,
        "source": _as_json(source),
        "training": dataclasses.asdict(training),
        "validations": [row._asdict() for row in trained.validations],
    }
    save_drafter(
        folder / FILE_NAME,
        trained.network,
        trained.tokens,
        vocabulary=target.language_model.vocabulary,
        report=report,
    )
    files.write_json(folder / "report.json", report)
    figures.drafter_training(folder / "report.png", report)
    return report


def _as_json(source: TextSource) -> dict[str, Any]:
    fields = dataclasses.asdict(source)
    # Names without folders: the report goes into the drafter's file.
    fields["plain_text"] = [path.name for path in source.plain_text]
    fields["prompts"] = Path(source.prompts).name
    return fields


def _ignore_progress(kind: str, done: int, total: int) -> None:
    pass
