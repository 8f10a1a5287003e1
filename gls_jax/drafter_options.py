"""Options of making a drafter: where its training texts come from, and how it is trained.

They stand here so that the command line can show them without loading flax.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gls_jax import checks
from gls_jax.decoding.sampling_parameters import check_sampling

__all__ = ["OWN_PROMPTS", "DrafterTraining", "TextSource"]

OWN_PROMPTS = "own"
"""The name of the prompts that the target writes itself."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """Where the texts come from. The descriptions of the fields are the command line's help."""

    prompts: str = OWN_PROMPTS
    """Prompts that the target answers: `own`, which it writes itself, a file with one JSON object
    per line, or a text file with one prompt per line.
    """
    texts: int = 4000
    """Replies; with a file of prompts at most one for each."""
    max_new_tokens: int = 256
    """Longest reply, in tokens."""
    temperatures: tuple[float, ...] = (1.0, 0.0, 1.0, 0.6)
    """Temperatures of the replies, in turn."""
    top_k: int = 50
    """Of the replies: keep the k most probable tokens; 0 keeps all."""
    batch: int = 64
    """Replies generated at a time; they do not depend on it."""
    plain_text: tuple[Path, ...] = ()
    """Text files that the target reads in addition."""
    text_tokens: int = 512
    """Longest text, prompt included; plain text is cut into pieces of this length."""

    def check(self) -> None:
        """Raise `ValueError` for options out of range."""
        for name in ("texts", "max_new_tokens", "batch", "text_tokens"):
            checks.count(getattr(self, name), name)
        if not self.temperatures:
            raise ValueError("temperatures: expected at least one, got none")
        for temperature in self.temperatures:
            check_sampling(temperature)
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (all) or more, got {self.top_k}")
        prompt_files = [] if self.prompts == OWN_PROMPTS else [Path(self.prompts)]
        for path in (*prompt_files, *self.plain_text):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file; expected prompts or plain text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrafterTraining:
    """How a drafter is trained. The descriptions of the fields are the command line's help."""

    layers: int = 1
    """Layers of the drafter, initialised from the target's last ones."""
    head_tokens: int = 8192
    """Tokens of the output head: those that the target gives most mass in the texts."""
    steps_ahead: int = 3
    """Tokens that are drafted one after the other in training, on the drafter's own states."""
    loss: str = "kl"
    """`kl`, `tv`, `lk`, or `list:SCHEME:K` such as `list:gls:8`: the acceptance of a list, exact
    except for `gumbel_topk`.
    """
    depth_weight: float = 0.8
    """Weight of each further step ahead, compared with the one before."""
    epochs: int = 4
    """Passes over the texts."""
    batch_tokens: int = 4096
    """Tokens in a step of the optimiser."""
    learning_rate: float = 1e-3
    """Largest learning rate of AdamW; it rises first, and falls to a twentieth at the end."""
    weight_decay: float = 0.01
    """Of AdamW."""
    validation_share: float = 0.05
    """Share of the texts that is held out."""
    validation_steps: int = 200
    """Steps between two validations, at which the training can be resumed."""
    patience: int = 4
    """Validations without a better one after which training ends."""
    seed: int = 0
    """Seed of the weights, the order of the texts and the held-out ones."""

    def check(self) -> None:
        """Raise `ValueError` for options out of range."""
        for name in ("layers", "head_tokens", "steps_ahead", "epochs", "batch_tokens"):
            checks.count(getattr(self, name), name)
        for name in ("validation_steps", "patience"):
            checks.count(getattr(self, name), name)
        if self.layers > 4 or self.steps_ahead > 8:
            raise ValueError(
                "layers, steps_ahead: expected at most 4 and 8, "
                f"got {self.layers} and {self.steps_ahead}"
            )
        for name in ("learning_rate", "depth_weight"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: expected a number within (0, 1], got {getattr(self, name)}"
                )
        if not 0 < self.validation_share < 1 or not 0 <= self.weight_decay < 1:
            raise ValueError(
                "validation_share, weight_decay: expected numbers below 1, "
                f"got {self.validation_share} and {self.weight_decay}"
            )
        checks.seed(self.seed)
