"""The state of one call of `check`: its noise, its time, and what came out so far."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from gls_jax import races
from gls_jax.conformance.calling import Noise, VerifierError
from gls_jax.typing import Report as ProgressReport

__all__ = ["Example", "Options", "Outcome", "Session"]

Example = Mapping[str, Any]

# A problem gets at most this part of the time limit, of which the calls before it left some.
_SHARE = 1 / 30


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
    """One check on one problem, before all p-values are known that the report divides by.

    `failure` is a certain failure, `p_value` is judged later, where `message` says what failed.
    `smaller(alpha)` looks for a smaller problem that fails, and gives its message and example.
    """

    check: str
    problem: str
    num_trials: int = 0
    detail: str = ""
    p_value: float | None = None
    num_cells: int | None = None
    failure: str | None = None
    is_note: bool = False
    is_skipped: bool = False
    message: str = ""
    example: Example = dataclasses.field(default_factory=dict)
    smaller: Callable[[float], tuple[str, str, Example] | None] | None = None


class Session:
    """Noise, time and outcomes of one call of `check`."""

    def __init__(self, key: PRNGKeyArray, options: Options, report: ProgressReport | None):
        self.options = options
        self.outcomes: list[Outcome] = []
        self._key = key
        self._end = time.monotonic() + options.time_limit
        self._report = report

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
        count = int(np.prod(shape))
        return np.asarray(races.uniforms(self.key(*names), count), np.float64).reshape(shape)

    @property
    def share(self) -> float:
        """Seconds that the next problem may take."""
        return max(self.options.time_limit * _SHARE, 0.1)

    def attempt(
        self, problem: str, run: Callable[[], None], example: Callable[[int], Example]
    ) -> None:
        """Run one problem; a verifier that gives no usable answer to it is an outcome.

        Args:
            problem: its name.
            run: records outcomes, or raises :class:`VerifierError`.
            example: the arguments of a trial, for the report.
        """
        if time.monotonic() > self._end:
            late = f"after the time limit of {self.options.time_limit:g} s"
            self.outcomes.append(Outcome("usable answers", problem, detail=late, is_skipped=True))
            return
        try:
            run()
        except VerifierError as error:
            message, inputs = str(error), example(error.trial)
            failed = Outcome("usable answers", problem, failure=message, example=inputs)
            self.outcomes.append(failed)

    def progress(self, name: str, done: int, total: int) -> None:
        """Tell the caller how far the check has come."""
        if self._report is not None:
            self._report(name, done, total)
