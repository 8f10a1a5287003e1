"""A target and its drafter, loaded by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from gls_jax import decoding, models
from gls_jax.models import layer_selection
from gls_jax.models.drafter import drafter_file as drafter_files
from gls_jax.typing import Report

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ModelPair", "check_pair", "is_automatic", "is_trained_drafter", "load_pair"]

_DRAFTERS_WITHOUT_WEIGHTS = ("ngram", "none")
_AUTO = "auto"
_TRAINED = "trained"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelPair:
    """A loaded target and the model that drafts for it.

    Attributes:
        target_name: name, folder or file of the target.
        target: checkpoint of the target.
        tokenizer: tokenizer of the target, and so of both models.
        draft_name: name of the drafter, with the layers that it leaves out.
        draft_checkpoint: checkpoint of the drafter, or None if the drafter has no weights.
        drafter: the drafter as decoding takes it, or None if no model drafts.
        is_automatic: whether its drafts, look-up or none are chosen in every round.
    """

    target_name: str
    target: models.Checkpoint
    tokenizer: Tokenizer
    draft_name: str
    draft_checkpoint: models.Checkpoint | None
    drafter: decoding.LanguageModel | None
    is_automatic: bool = False

    @property
    def drafting(self) -> decoding.LanguageModel | decoding.Auto | None:
        """What `decoding.generate` takes as its drafters."""
        return decoding.auto(self.drafter) if self.is_automatic else self.drafter


def check_pair(draft: str | None, drop_layers: str | None) -> None:
    """Check the name of a drafter as far as that is possible without loading models.

    Args:
        draft, drop_layers: as for :func:`load_pair`.

    Raises:
        ValueError: layers of another form, or layers to drop from a drafter without weights.
        FileNotFoundError: no such file or folder.

    >>> from gls_jax.models import model_pair
    >>> model_pair.check_pair("ngram", None)
    """
    layer_selection.parse_ranges(drop_layers or "")
    name = draft
    is_auto, draft = _split_auto(draft)
    has_no_layers = draft in _DRAFTERS_WITHOUT_WEIGHTS or is_trained_drafter(draft)
    if drop_layers is not None and (has_no_layers or (is_auto and draft is None)):
        raise ValueError(
            f"drop_layers: expected a drafter that is a model with layers, got draft {name!r}"
        )
    is_name = draft in (None, "smollm2", _TRAINED, *_DRAFTERS_WITHOUT_WEIGHTS)
    if not is_name and not Path(str(draft)).exists():
        raise FileNotFoundError(
            f"{draft}: no such file or folder; "
            "expected a Hugging Face folder, a .gguf file, the folder of a trained drafter, "
            "trained, smollm2, ngram or none"
        )


def load_pair(
    target_name: str,
    draft: str | None = None,
    drop_layers: str | None = None,
    *,
    progress: Report | None = None,
) -> ModelPair:
    """Load a target and its drafter.

    Args:
        target_name: as for :func:`gls_jax.models.load`.
        draft: the drafter, likewise, or one that `gls-jax train-drafter` has trained; "trained" is
            the one that comes with smollm2; "ngram" looks drafts up in the text, "none" drafts
            nothing; "auto:DRAFTER" chooses in every round whether to take the drafts of a drafter,
            to look drafts up, or to draft nothing, and "auto" alone takes "trained" for smollm2 and
            only looks up for others; None is the target itself, without some of its layers.
        drop_layers: layers that the drafter leaves out, such as "12-17" or "3,7-9", or "" for none;
            None leaves out the middle fifth of the target's layers, and none of another drafter's.
        progress: called with `("models", models loaded, 2)`.

    Raises:
        ValueError: "trained" for a target that no drafter comes with, a target without a tokenizer,
            a drafter with another tokenizer, or layers that the drafter does not have.
        OSError: a model that cannot be read.

    >>> from gls_jax.models import model_pair
    >>> pair = model_pair.load_pair("smollm2", drop_layers="1-28")
    >>> pair.draft_name, pair.draft_checkpoint.config.num_layers
    ('smollm2 without layers 1-28', 2)
    """
    check_pair(draft, drop_layers)
    is_auto, draft = _split_auto(draft)
    if is_auto:
        return _automatic_pair(target_name, draft, drop_layers, progress)
    trained_path = None
    if draft is not None and is_trained_drafter(draft):
        # Before the target is loaded, so that a missing drafter is an error at once.
        trained_path = _shipped_drafter(target_name) if draft == _TRAINED else draft
    report = progress or _ignore_progress
    report("models", 0, 2)
    target = models.load(target_name)
    tokenizer = target.tokenizer
    if tokenizer is None:
        raise ValueError(f"{target_name}: expected a tokenizer with the weights, found none")
    report("models", 1, 2)

    def pair(
        draft_name: str,
        drafter: decoding.LanguageModel | None,
        checkpoint: models.Checkpoint | None = None,
    ) -> ModelPair:
        report("models", 2, 2)
        return ModelPair(
            target_name=target_name,
            target=target,
            tokenizer=tokenizer,
            draft_name=draft_name,
            draft_checkpoint=checkpoint,
            drafter=drafter,
        )

    if draft == "none":
        return pair(draft, None)
    if draft == "ngram":
        return pair(draft, decoding.ngram_lookup(target.config.vocab_size))
    if draft is not None and trained_path is not None:
        return pair(draft, drafter_files.load_drafter(trained_path, target))

    # A drafter from the target's own weights shares embedding and head with it.
    draft_name = target_name if draft is None else draft
    checkpoint = target if draft is None else models.load(draft)
    num_layers = checkpoint.config.num_layers
    if drop_layers is None and draft is None:
        first, last = layer_selection.middle_fifth(num_layers)
        drop_layers = str(first) if first == last else f"{first}-{last}"
    if drop_layers:
        dropped_layers = layer_selection.parse_ranges(drop_layers)
        kept_layers = layer_selection.remaining_layers(dropped_layers, num_layers)
        model = models.keep_layers(checkpoint.model, kept_layers)
        checkpoint = checkpoint._replace(model=model, config=model.config)
        draft_name += f" without layers {drop_layers}"

    # The hash of the vocabulary is unknown for a checkpoint without a tokenizer.
    drafter = checkpoint.language_model
    if drafter.vocabulary not in (None, target.language_model.vocabulary):
        raise ValueError(f"{draft}: expected the tokenizer of the target, got another one")
    return pair(draft_name, drafter, checkpoint)


def is_automatic(draft: str | None) -> bool:
    """Whether this name of a drafter means automatic drafting."""
    return _split_auto(draft)[0]


def is_trained_drafter(draft: str | None) -> bool:
    """Whether this name is a drafter of `gls-jax train-drafter`."""
    return draft == _TRAINED or (draft is not None and drafter_files.is_drafter(draft))


def _shipped_drafter(target_name: str) -> Path:
    """The file of the drafter that comes with this package for a target."""
    path = drafter_files.shipped_drafter(target_name)
    if path is None:
        raise ValueError(
            f"draft: expected target smollm2 for the trained drafter of this package, got "
            f"{target_name}; gls-jax train-drafter trains one for other targets"
        )
    return path


def _automatic_pair(
    target_name: str, draft: str | None, drop_layers: str | None, progress: Report | None
) -> ModelPair:
    """A target with automatic drafting, by look-up and by a drafter if there is one."""
    if draft is None:
        has_drafter = drafter_files.shipped_drafter(target_name) is not None
        draft = _TRAINED if has_drafter else "none"
    pair = load_pair(target_name, draft, drop_layers, progress=progress)
    name = _AUTO if draft == "none" else f"{_AUTO}:{pair.draft_name}"
    return dataclasses.replace(pair, draft_name=name, is_automatic=True)


def _split_auto(draft: str | None) -> tuple[bool, str | None]:
    """Whether drafting is automatic, and the name of the drafter."""
    # As with all names, a file of the same name is `./auto`.
    kind, _, name = (draft or "").partition(":")
    return (True, name or None) if kind == _AUTO else (False, draft)


def _ignore_progress(kind: str, done: int, total: int) -> None:
    pass
