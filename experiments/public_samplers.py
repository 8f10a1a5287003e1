"""The conformance kit (`gls_jax.conformance`) on rejection samplers that public packages carry.

Every sampler runs as its package has it, on a CPU, under an adapter of a few lines
(`experiments/sampler_adapters.py`). An adapter can be wrong itself. So every finding is reproduced
by hand before it is written down. `transformers` is the
installed one; the other packages are downloaded, one wheel each without dependencies, in a fixed
version. A sampler that cannot be had is listed as not tried.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from experiments import output
from experiments.package_files import Unavailable
from experiments.sampler_adapters import SAMPLERS
from gls_jax import checks, conformance
from gls_jax.runs import files
from gls_jax.typing import Report

# Not by default: 300 MB, and its kernels are interpreted.
SLOW = ("vllm",)


class Row(NamedTuple):
    """A sampler and one of its findings, or that nothing was found, or why it was not tried.

    `smallest_bias` is the median of all checks, in total variation.
    """

    sampler: str
    package: str
    version: str
    function: str
    result: str
    check: str | None = None
    problem: str | None = None
    message: str | None = None
    num_problems: int | None = None
    num_not_tried: int | None = None
    num_checks: int | None = None
    num_answers: int | None = None
    smallest_bias: float | None = None


@dataclasses.dataclass(frozen=True)
class PublicSamplers:
    """The conformance kit on rejection samplers of public packages.

    Attributes:
        samplers: Names of samplers.
        num_trials: Most answers for a problem.
        seconds: Most time for a sampler.
        seed: Of all noise.
        out: Folder for public_samplers.csv, public_samplers.json and what is downloaded.
        full: All samplers, with more answers.
    """

    FULL: ClassVar[dict] = {
        "samplers": tuple(SAMPLERS),
        "num_trials": 100_000,
        "seconds": 3600.0,
    }
    SUFFIXES: ClassVar[tuple[str, ...]] = (".csv", ".json")

    samplers: tuple[str, ...] = tuple(name for name in SAMPLERS if name not in SLOW)
    num_trials: int = 8_000
    seconds: float = 600.0
    seed: int = 0
    out: Path = Path("results/public_samplers")
    full: bool = False

    def run(self, report: Report) -> list:
        for name in self.samplers:
            checks.one_of(name, tuple(SAMPLERS), "samplers")
        rows: list[Row] = []
        reports = {}
        for number, name in enumerate(self.samplers):
            report(f"{name}, {number + 1} of {len(self.samplers)}", 0, 1)
            try:
                found = self._check(name, report)
            except Unavailable as error:
                rows.append(_row(name, "not tried", message=str(error)))
                continue
            reports[name] = found.as_json()
            rows += _rows(name, found)
            # Each takes minutes: what is done is kept.
            self._save(rows, reports)
        self._save(rows, reports)
        return [_table(rows)]

    def _check(self, name: str, report: Report) -> conformance.Report:
        sampler = SAMPLERS[name]
        verifier = sampler.load(self.out / "packages")
        return conformance.check(
            verifier,
            seed=self.seed,
            num_trials=self.num_trials,
            time_limit=self.seconds,
            progress=lambda kind, done, total: report(f"{name}: {kind}", done, total),
            **sampler.options,
        )

    def _save(self, rows: list[Row], reports: dict) -> None:
        output.write_csv(self.out / "public_samplers.csv", rows)
        text = json.dumps(reports, indent=1) + "\n"
        files.write_whole(
            self.out / "public_samplers.json", lambda file: file.write(text), mode="w"
        )


def _rows(name: str, report: conformance.Report) -> list[Row]:
    """A row for each finding, or one that says that there is none."""
    done = [result for result in report.checks if result.status != "skipped"]
    biases = [result.smallest_bias for result in done if result.smallest_bias is not None]
    tried = {result.problem for result in done}
    size: dict[str, Any] = {
        "num_problems": len(tried),
        # For want of time.
        "num_not_tried": len({result.problem for result in report.checks} - tried),
        "num_checks": len(done),
        "num_answers": sum(result.num_trials for result in done),
        "smallest_bias": float(np.median(biases)) if biases else None,
    }
    if report.passed:
        return [_row(name, "nothing found", **size)]
    return [
        _row(
            name,
            "found",
            check=finding.check,
            problem=finding.problem,
            message=finding.message,
            **size,
        )
        for finding in report.findings
    ]


def _row(name: str, result: str, **fields: Any) -> Row:
    sampler = SAMPLERS[name]
    try:
        version = sampler.loaded_version
    except ModuleNotFoundError:
        version = ""
    return Row(name, sampler.package, version, sampler.function, result, **fields)


def _table(rows: list[Row]):
    header = ("sampler", "version", "result", "check", "problem", "tried", "answers", "sees")
    lines = [
        (
            row.sampler,
            row.version,
            row.result,
            row.check or "",
            row.problem or "",
            row.num_problems,
            row.num_answers,
            row.smallest_bias,
        )
        for row in rows
    ]
    note = (
        "tried: problems; sees: the median bias, in total variation, that a check would have found"
    )
    return output.table("Public samplers", header, lines, note)
