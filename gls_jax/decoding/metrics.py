"""Figures of merit of speculative decoding, with their usual names."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Metrics"]


class Metrics(NamedTuple):
    """Counts of a run, and the figures that follow from them.

    Attributes:
        histogram: `i64[B, depth + 1]`, in how many rounds the target accepted 0, 1, ... drafts of a
            request. Accepted drafts that a stop token or the length limit cuts off are counted too.
        emitted: `i64[B]`, tokens of the output.
        nodes: drafts that the target verifies in one call.
        calls_per_round: calls of drafters in one round; in a round of a dynamic tree, at most.
        rounds: of the whole batch.
        seconds: wall time of each part, `draft`, `verify`, `select`, `other`; None unless the run
            was timed.
        measured_calls: `i64[B]`, calls of drafters that each request took part in; None if they
            follow from `calls_per_round`.
        drafted: `i64[B]`, drafts that the target verified; None if they follow from `nodes`.
        modes: of automatic drafting, rounds of the batch in each mode, by its name.
        tried: `i64[B, depth]`, in how many rounds a draft at each depth could be accepted, because
            those before it were and there was one; None if all rounds had drafts at all depths.

    >>> import numpy as np
    >>> from gls_jax.decoding.metrics import Metrics
    >>> run = Metrics(np.array([[2, 1, 1]]), np.array([7]), nodes=8, calls_per_round=2, rounds=4)
    >>> run.mean_acceptance_length, run.acceptance_by_position.tolist(), run.target_calls.tolist()
    (1.75, [0.5, 0.5], [4])
    """

    histogram: Int[np.ndarray, "B A"]
    emitted: Int[np.ndarray, " B"]
    nodes: int
    calls_per_round: int
    rounds: int
    seconds: dict[str, float] | None = None
    measured_calls: Int[np.ndarray, " B"] | None = None
    drafted: Int[np.ndarray, " B"] | None = None
    modes: dict[str, int] | None = None
    tried: Int[np.ndarray, "B depth"] | None = None

    @property
    def target_calls(self) -> Int[np.ndarray, " B"]:
        """Calls of the target that each request took part in, after those for the prompt."""
        return self.histogram.sum(axis=1)

    @property
    def draft_calls(self) -> Int[np.ndarray, " B"]:
        """Calls of drafters that each request took part in."""
        if self.measured_calls is not None:
            return self.measured_calls
        return self.target_calls * self.calls_per_round

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per call of the target, the target's own token included: the block efficiency."""
        tokens_per_round = np.arange(1, self.histogram.shape[1] + 1)
        return _ratio((self.histogram * tokens_per_round).sum(), self.histogram.sum())

    def speculative_decoding(self, request: int) -> dict[str, Any] | None:
        """Figures of one request under the names that vLLM reports, as JSON.

        `num_spec_tokens` is the longest path of drafts, `num_draft_tokens` counts the nodes of
        trees, and `num_spec_steps` the calls of the target that verified drafts.

        Args:
            request: its row in the batch.

        Returns:
            The figures; None if nothing was drafted.

        >>> import numpy as np
        >>> from gls_jax.decoding.metrics import Metrics
        >>> run = Metrics(
        ...     np.array([[2, 1, 1]]), np.array([7]), nodes=2, calls_per_round=2, rounds=4
        ... )
        >>> figures = run.speculative_decoding(0)
        >>> figures["acceptance_histogram"], figures["draft_acceptance_rate"]
        ([2, 1, 1], 0.375)
        """
        counts = self.histogram[request].copy()
        tried = self._tried()[request]
        if not tried.sum():
            return None
        num_steps = int(tried[0])
        # Rounds without drafts accepted none, and verified nothing.
        counts[0] -= counts.sum() - num_steps
        num_accepted = int(counts @ np.arange(len(counts)))
        num_drafts = num_steps * self.nodes
        if self.drafted is not None:
            num_drafts = int(self.drafted[request])
        accepted = _at_least(counts)[1:]
        return {
            "mean_acceptance_length": 1 + num_accepted / num_steps,
            "draft_acceptance_rate": num_accepted / num_drafts if num_drafts else None,
            "acceptance_histogram": counts.tolist(),
            "conditional_acceptance": [
                float(after / before) if before else None
                for before, after in zip(tried, accepted, strict=True)
            ],
            "num_spec_steps": num_steps,
            "num_accepted_draft_tokens": num_accepted,
            "num_draft_tokens": num_drafts,
            "num_spec_tokens": int((tried > 0).sum()),
        }

    @property
    def block_efficiency(self) -> float:
        """The mean acceptance length under its other name."""
        return self.mean_acceptance_length

    @property
    def acceptance_histogram(self) -> Float[np.ndarray, " A"]:
        """Share of the rounds that accepted 0, 1, ... drafts."""
        return self.histogram.sum(axis=0) / max(self.histogram.sum(), 1)

    @property
    def acceptance_by_position(self) -> Float[np.ndarray, " depth"]:
        """Probability that the draft at each depth is accepted, given that those before it are.

        NaN at a depth at which no round had a draft that could be accepted.
        """
        accepted = _at_least(self.histogram.sum(axis=0))[1:]
        tried = self._tried().sum(axis=0)
        return np.array([_ratio(*counts) for counts in zip(accepted, tried, strict=True)])

    def _tried(self) -> Int[np.ndarray, "B depth"]:
        return _at_least(self.histogram)[:, :-1] if self.tried is None else self.tried


def _at_least(counts: np.ndarray) -> np.ndarray:
    """In how many rounds at least 0, 1, ... drafts were accepted; along the last axis."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def _ratio(numerator, denominator) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")
