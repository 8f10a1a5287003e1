"""The state of one call of `check`: its noise, its time, and what came out so far."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from gls_jax import races
from gls_jax.conformance.calling import Noise, VerifierError
from gls_jax.conformance.known_mistakes import Counted
from gls_jax.typing import Report as ProgressReport

__all__ = ["USABLE", "Example", "Options", "Outcome", "Session", "Step"]

Example = Mapping[str, Any]

Step: TypeAlias = tuple[str, Callable[[], None]]
"""A problem's name, and what is done with it."""

# A problem gets at most this part of the time limit; most need less.
_SHARE = 1 / 30
_SIDE_TRIALS = 3_000

USABLE = "usable answers"


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `check` that the kinds read."""

    noise: Noise
    num_trials: int
    max_drafts: int | None
    max_vocabulary: int | None
    problems: tuple[str, ...] | None
    acceptance: Callable[..., Any] | None
    diverse: bool
    without_replacement: bool
    separate_keys: bool
    invariance: str | None
    drafts: str | None
    time_limit: float

    def wants(self, problem: str) -> bool:
        """Whether this problem is among the chosen ones."""
        return self.problems is None or problem in self.problems


@dataclasses.dataclass
class Outcome:
    """One check on one problem. It is judged when the number of statistical tests is known.

    Attributes:
        check, problem: names.
        num_trials: answers that were counted.
        detail: what was measured, in words.
        p_value: of a statistical test.
        num_cells: categories of that test.
        failure: what is certainly wrong, in words.
        is_note_only: whether it is reported without being a finding.
        consequence_of: name of a check; if that fails on this problem, this is a note only.
        is_skipped: whether the problem was not tried.
        message: what is wrong if `p_value` is too small.
        example: arguments that show it.
        one_draft_counts: what :mod:`gls_jax.conformance.known_mistakes` looks at.
        find_smaller: ``(alpha)``, looks for a smaller problem that fails.
    """

    check: str
    problem: str
    num_trials: int = 0
    detail: str = ""
    p_value: float | None = None
    num_cells: int | None = None
    failure: str | None = None
    is_note_only: bool = False
    consequence_of: str | None = None
    is_skipped: bool = False
    message: str = ""
    example: Example = dataclasses.field(default_factory=dict)
    one_draft_counts: Counted | None = None
    find_smaller: Callable[[float], Outcome | None] | None = None

    def is_wrong(self, alpha: float) -> bool:
        """Whether a lossless verifier would not do this."""
        return self.failure is not None or (self.p_value is not None and self.p_value < alpha)

    def has_failed(self, alpha: float) -> bool:
        """Whether this is a finding."""
        return self.is_wrong(alpha) and not self.is_note_only


class Session:
    """Noise, time and outcomes of one call of `check`."""

    def __init__(self, key: PRNGKeyArray, options: Options, report: ProgressReport | None):
        self.options = options
        self.outcomes: list[Outcome] = []
        self._key = key
        self._end = time.monotonic() + options.time_limit
        self._report = report
        self.has_dependent_neighbours = False

    def key(self, *names: str | int) -> PRNGKeyArray:
        """A key of its own for everything with a name, whatever else is checked."""
        key = self._key
        for name in names:
            number = zlib.crc32(name.encode()) >> 1 if isinstance(name, str) else name
            key = races.position_key(key, number)
        return key

    def keys(self, count: int, *names: str | int) -> Key[Array, " T"]:
        """Keys of trials; those of the first trials do not depend on how many there are."""
        return races.split_key(self.key(*names), count)

    def uniforms(self, shape: tuple[int, ...], *names: str | int) -> np.ndarray:
        """The kit's own noise, `f64[shape]`."""
        uniforms = _uniforms(self.key(*names), int(np.prod(shape)))
        return np.asarray(uniforms, np.float64).reshape(shape)

    @property
    def seconds_per_problem(self) -> float:
        """Seconds that a problem may take."""
        return max(self.options.time_limit * _SHARE, 0.1)

    @property
    def seconds_per_large_problem(self) -> float:
        """Seconds that a problem of the size of a vocabulary may take."""
        return 2 * self.seconds_per_problem

    @property
    def num_side_trials(self) -> int:
        """Of checks beside the main ones, where a trial is a call of its own."""
        return min(_SIDE_TRIALS, self.options.num_trials)

    def run(self, steps: Sequence[Step]) -> None:
        """Run the steps of a kind until the time is over; the rest is recorded as not tried."""
        for number, (problem, run_step) in enumerate(steps):
            if self._report is not None:
                self._report("problems", number, len(steps))
            if time.monotonic() > self._end:
                self.skip(problem, f"after the time limit of {self.options.time_limit:g} s")
            else:
                run_step()

    def skip(self, problem: str, reason: str) -> None:
        """Record a problem that is not tried."""
        skipped = Outcome(USABLE, problem, detail=reason, is_skipped=True)
        if skipped not in self.outcomes:
            self.outcomes.append(skipped)

    def skips_size(self, problem: str, size: int) -> bool:
        """Whether a vocabulary is larger than the verifier takes, which is recorded then."""
        largest = self.options.max_vocabulary
        is_skipped = largest is not None and size > largest
        if is_skipped:
            self.skip(problem, f"its {size:,} tokens are more than max_vocabulary ({largest})")
        return is_skipped

    @contextmanager
    def usable_answers(
        self, problem: str, example: Callable[[int | None], Example]
    ) -> Iterator[Outcome]:
        """Record whether the verifier answers; the outcome is for the number of its trials.

        Args:
            problem: its name.
            example: the arguments of a trial, for the report.
        """
        outcome = Outcome(USABLE, problem)
        try:
            yield outcome
        except VerifierError as error:
            outcome.failure, outcome.example = str(error), example(error.trial)
        self.outcomes.append(outcome)


@partial(jax.jit, static_argnums=1)
def _uniforms(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    return races.uniforms(key, count)
