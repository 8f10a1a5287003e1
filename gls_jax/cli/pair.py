"""Options of commands that read the laws of a target and a drafter."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gls_jax.distributions import Sampling

__all__ = ["Pair"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two models and how they are sampled."""

    target: str = "smollm2"
    """`smollm2`, a Hugging Face folder or a .gguf file."""
    draft: str | None = None
    """The drafter, likewise. Default: the target without --drop-layers."""
    drop_layers: str | None = None
    """Layers the drafter leaves out, such as `12-17` or `3,7-9`. Default: the middle fifth of the
    target's.
    """
    temperature: float = 1.0
    """Of the target."""
    draft_temperature: float | None = None
    """Of the drafter. Default: the target's."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this mass."""
    min_p: float | None = None
    """Keep tokens of at least this share of the likeliest one's probability."""
    num_kept: int = 64
    """Likeliest tokens of each law that a dump keeps, m."""
    seed: int = 0
    """Of the texts that the target samples."""
    json: bool = False
    """Print one JSON object."""

    @property
    def models(self) -> dict[str, str | None]:
        """Which models, as JSON."""
        return {"target": self.target, "draft": self.draft, "drop_layers": self.drop_layers}

    def sampling(self) -> Sampling:
        """The sampling parameters."""
        from gls_jax import distributions

        return distributions.Sampling(
            self.temperature, self.draft_temperature, self.top_k or None, self.top_p, self.min_p
        )
