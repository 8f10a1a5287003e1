"""Target and drafter as they are named on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gls_jax.decoding import LanguageModel
    from gls_jax.models import Checkpoint

__all__ = ["check", "load"]

_WITHOUT_MODEL = ("ngram", "none")


def check(draft: str | None, drop_layers: str | None) -> None:
    """Raise for a drafter that cannot be had, as far as that can be told without loading it."""
    # Imported late: the package takes a second, which `--help` must not wait for.
    from gls_jax.models import layer_selection

    layer_selection.parse_ranges(drop_layers or "")
    if draft in _WITHOUT_MODEL and drop_layers is not None:
        raise ValueError(f"drop_layers: expected a drafter that is a model, got --draft {draft}")
    if draft not in (None, "smollm2", *_WITHOUT_MODEL) and not Path(draft).exists():
        raise FileNotFoundError(
            f"{draft}: no such file or folder; expected a Hugging Face folder, a .gguf file, smollm2, ngram or none"
        )


def load(
    target: str, draft: str | None, drop_layers: str | None, report: Callable[[str, int, int], None]
) -> tuple[Checkpoint, LanguageModel | None]:
    """The target, and the :class:`gls_jax.decoding.LanguageModel` that drafts for it or None.

    Args:
        target, draft: as on the command line.
        drop_layers: layers that the drafter leaves out; None for the default.
        report: takes the progress.

    Raises:
        ValueError: a target without a tokenizer, a drafter with another one, or layers that it does
        not have. OSError: a model that cannot be read.
    """
    from gls_jax import decoding, models
    from gls_jax.models import layer_selection

    report("models", 0, 2)
    source = models.load(target)
    if source.tokenizer is None:
        raise ValueError(f"{target}: expected a tokenizer beside the weights, found none")
    report("models", 1, 2)
    if draft in _WITHOUT_MODEL:
        return source, None if draft == "none" else decoding.ngram_lookup(source.config.vocab_size)
    drafter = source if draft is None else models.load(draft)
    num_layers = drafter.config.num_layers
    if drop_layers is None and draft is None:
        dropped = [layer_selection.middle_fifth(num_layers)]
    else:
        dropped = layer_selection.parse_ranges(drop_layers or "")
    if dropped:
        kept_layers = layer_selection.remaining_layers(dropped, num_layers)
        model = models.keep_layers(drafter.model, kept_layers)
        drafter = drafter._replace(model=model, config=model.config)
    drafting = drafter.language_model
    if drafting.vocabulary not in (None, source.language_model.vocabulary):
        raise ValueError(f"{draft}: expected the tokenizer of the target, got another one")
    report("models", 2, 2)
    return source, drafting
