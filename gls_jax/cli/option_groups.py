"""Options that several commands have in common."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gls_jax.distributions import Sampling
from gls_jax.typing import Report

if TYPE_CHECKING:
    # gls_jax.models imports flax, which only some commands need.
    from gls_jax.models.model_pair import ModelPair

__all__ = ["DEFAULT_MODELS", "DEFAULT_SAMPLING", "ModelNames", "SamplingOptions", "top_k_or_all"]


@dataclasses.dataclass(frozen=True)
class ModelNames:
    """The target model and the draft model."""

    target: str = "smollm2"
    """`smollm2`, a Hugging Face folder or a .gguf file."""
    draft: str | None = None
    """The drafter, likewise. `generate` also takes `trained`, the drafter that comes with smollm2,
    or the folder of `gls-jax train-drafter`; `ngram`, which looks drafts up in the text; `none`,
    which drafts nothing; and `auto` or `auto:DRAFTER`, which chooses in every round whether to look
    drafts up, to take those of the drafter, or none. Default: the target without --drop-layers;
    `generate` has its own.
    """
    drop_layers: str | None = None
    """Layers that the drafter leaves out, such as `12-17` or `3,7-9`; empty for none. Default: the
    middle fifth of the target (`12-17` of smollm2), but no layer of a drafter given by --draft.
    """

    def check(self, refused: tuple[str, ...] = ()) -> None:
        """Check the names as far as that is possible without loading models.

        Args:
            refused: drafters that the command cannot use.
        """
        from gls_jax.models import model_pair

        if self.draft in refused:
            expected = "a drafter" if self.draft == "none" else "a drafter that is a model"
            raise ValueError(f"draft: expected {expected}, got {self.draft}")
        if refused and (self.is_automatic or model_pair.is_trained_drafter(self.draft)):
            raise ValueError(
                "draft: expected a language model, which drafts without the target's features, "
                f"got {self.draft}; only gls-jax generate takes that"
            )
        model_pair.check_pair(self.draft, self.drop_layers)

    def with_trained_drafter(self) -> ModelNames:
        """The drafter that comes with the target, if there is one."""
        from gls_jax.models import drafter

        has_drafter = drafter.shipped_drafter(self.target) is not None
        return dataclasses.replace(self, draft="trained") if has_drafter else self

    @property
    def is_automatic(self) -> bool:
        """Whether what drafts is chosen in every round."""
        from gls_jax.models import model_pair

        return model_pair.is_automatic(self.draft)

    def load(self, report: Report) -> ModelPair:
        """Load both models."""
        from gls_jax.models import model_pair

        return model_pair.load_pair(self.target, self.draft, self.drop_layers, progress=report)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """Sampling parameters of both models."""

    temperature: float = 1.0
    """Temperature of the target."""
    draft_temperature: float | None = None
    """Temperature of the drafter. Default: that of the target."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the most probable tokens up to this total probability."""
    min_p: float | None = None
    """Keep tokens with at least this share of the largest probability."""

    def sampling(self) -> Sampling:
        """The parameters as the library takes them."""
        return Sampling(
            temperature=self.temperature,
            draft_temperature=self.draft_temperature,
            top_k=top_k_or_all(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
        )


def top_k_or_all(top_k: int) -> int | None:
    """Number of tokens to keep, or None for all, which the command line writes as 0."""
    if top_k < 0:
        raise ValueError(f"top_k: expected 0 (all) or more, got {top_k}")
    return top_k or None


# One object for all commands: a dataclass must not call functions for its defaults.
DEFAULT_MODELS = ModelNames()
DEFAULT_SAMPLING = SamplingOptions()
