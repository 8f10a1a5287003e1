"""What was checked, what was found, and a table of both that people can read."""

from __future__ import annotations

import dataclasses
import statistics
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["CheckResult", "Finding", "Report"]

_WIDTH = 100  # columns of the printed report


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that a lossless verifier does not do.

    Attributes:
        check: name of the check that failed.
        problem: name of a problem on which the check failed; `example` may be a smaller one.
        message: one line for the author of the verifier.
        problems: all problems on which the check failed.
        example: smallest failing input, argument names to values, with the key of its trial if a
            single trial shows the fault.
    """

    check: str
    problem: str
    message: str
    problems: tuple[str, ...]
    example: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.check}, problem '{self.problem}': {self.message}"


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One check on one problem.

    Attributes:
        check: what was checked.
        problem: name of the problem.
        status: `"passed"`, `"failed"`, `"noted"` (reported, no failure) or `"skipped"`.
        num_trials: answers of the verifier that were counted.
        detail: what was measured, in words.
        p_value: upper bound, None for a check that is no statistical test.
        smallest_bias: in total variation, what this check would have seen with 99 % probability;
            None where that has no meaning.
    """

    check: str
    problem: str
    status: Literal["passed", "failed", "noted", "skipped"]
    num_trials: int
    detail: str
    p_value: float | None = None
    smallest_bias: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of :func:`gls_jax.conformance.check`; ``str(report)`` is a table.

    Attributes:
        verifier: its name.
        kind: of the signature.
        seed: of all noise.
        calls: how the verifier was called, in words.
        findings: one for each check that failed.
        checks: every check on every problem.
        false_failure_rate: probability at most that a lossless verifier is called biased.
        seconds: time taken.
    """

    verifier: str
    kind: str
    seed: int
    calls: str
    findings: tuple[Finding, ...]
    checks: tuple[CheckResult, ...]
    false_failure_rate: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        """The report as a dictionary of numbers, strings, lists and dictionaries."""
        return dataclasses.asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        verdict = "nothing found" if self.passed else f"{len(self.findings)} found"
        skipped = {result.problem for result in self.checks if result.status == "skipped"}
        if skipped:
            verdict += f", {len(skipped)} problems not tried"
        head = f"{self.verifier}, kind {self.kind}, seed {self.seed}: {verdict}"
        lines = [head, f"{self.calls}; {self.seconds:.0f} s", "", *_table(self.checks), ""]
        lines += _notes(self.checks)
        for number, finding in enumerate(self.findings, 1):
            lines += _described(number, finding)
        lines += textwrap.wrap(
            f"A lossless verifier is called biased with probability at most "
            f"{self.false_failure_rate:g}. 'sees' is the bias in total variation that a check "
            "finds in 99 of 100 reports, the median over its problems; a smaller bias can pass.",
            _WIDTH,
        )
        return "\n".join(lines)


def _table(checks: tuple[CheckResult, ...]) -> list[str]:
    """A line for each check: its problems taken together."""
    rows = [("check", "problems", "trials", "sees", "result")]
    for name in dict.fromkeys(result.check for result in checks):
        rows.append(_row(name, [result for result in checks if result.check == name]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[-1] = 0
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < column < 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "  ".join("-" * max(width, 6) for width in widths)
    return [lines[0], rule, *lines[1:]]


def _row(name: str, results: list[CheckResult]) -> tuple[str, str, str, str, str]:
    done = [result for result in results if result.status != "skipped"]
    failed = [result.problem for result in results if result.status == "failed"]
    biases = [result.smallest_bias for result in done if result.smallest_bias is not None]
    if failed:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        outcome = f"FAILED on '{failed[0]}'{others}"
    elif not done:
        outcome = f"skipped: {results[0].detail}"
    elif any(result.status == "noted" for result in done):
        outcome = "see note"
    else:
        outcome = "passed"
    skipped = len(results) - len(done)
    if done and skipped:
        outcome += f" ({skipped} skipped: {_first_skipped(results)})"
    # The numbers of each problem are in `checks`.
    sees = ""
    if biases:
        sees = f"{statistics.median(biases):.2g}"
    trials = f"{sum(result.num_trials for result in done):,}"
    return name, str(len(done)), trials, sees, outcome


def _notes(checks: tuple[CheckResult, ...]) -> list[str]:
    """What is no finding, but good to know: the first note of each check."""
    notes: dict[str, CheckResult] = {}
    for result in checks:
        if result.status == "noted":
            notes.setdefault(result.check, result)
    lines: list[str] = []
    for result in notes.values():
        text = f"Note, {result.check}: {result.detail}"
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    return [*lines, ""] if lines else []


def _first_skipped(results: list[CheckResult]) -> str:
    return next(result.detail for result in results if result.status == "skipped")


def _described(number: int, finding: Finding) -> list[str]:
    """A finding with its smallest failing input."""
    lines = textwrap.wrap(f"{number}. {finding}", _WIDTH, subsequent_indent="   ")
    if len(finding.problems) > 1:
        names = f"failed on: {', '.join(finding.problems)}"
        lines += textwrap.wrap(names, _WIDTH, initial_indent="   ", subsequent_indent="   ")
    for name, value in finding.example.items():
        text = textwrap.shorten(f"{name} = {value}", 400, placeholder=" ...")
        lines += textwrap.wrap(text, _WIDTH, initial_indent="     ", subsequent_indent="       ")
    return [*lines, ""]
