"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Tables 10 and 11: lossy compression with
side information.

Gaussian source, side variance 1/2, N = 2^15 candidates, L = 2..64 bins (1 to 6 bits), K = 1..4
decoders, GLS against the baseline that shares one stream. The paper chooses the target variance
from seven on 10,000 trials and reports the mean over trials of 10 log10(squared error) of the best
decoder. Here that, and 10 log10 of the mean squared error, each with a target variance chosen for
it (the second from a wider grid); beside them silence (a decoder that hears nothing), converses,
match probability with its bound, and an estimate that does not trust the winner.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import shared
from gls_jax import checks, compression, races
from gls_jax.compression.gaussian import monte_carlo_distortion

SIDE_VARIANCE = 0.5
SCHEMES = ("gls", "baseline")
PAPERS = (0.01, 0.008, 0.006, 0.005, 0.003, 0.002, 0.001)  # the paper's target variances
WIDER = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, *PAPERS)
COARSE = (0.1, 0.03, 0.01)  # for the posterior mean, which asks the encoder often
METRICS = ("mean_of_db", "db_of_mean")
PUBLISHED = Path(__file__).parent / "published" / "gaussian.csv"


class Row(NamedTuple):
    """One code. `chosen_for` says how its target variance was: for a metric, `paper` as published,
    `fixed` to .01.
    """

    scheme: str
    num_decoders: int
    num_bins: int
    estimator: str
    chosen_for: str
    target_variance: float
    match: float
    match_error: float
    bound: float | None
    mean_of_db: float
    mean_of_db_error: float
    db_of_mean: float
    db_of_mean_error: float
    published: float | None = None


class Control(NamedTuple):
    """What needs no code: silence, and what no code can beat (a mean squared error, so in one
    metric only).
    """

    num_decoders: int
    num_bins: int
    silence_mean_of_db: float
    silence_db_of_mean: float
    converse_db: float


@dataclasses.dataclass(frozen=True)
class GaussianTables:
    """GLS paper, Tables 10 and 11: distortion and match probability of the Gaussian codec, all L
    and K.
    """

    FULL: ClassVar[dict] = {"num_trials": 100_000, "num_repeats": 10}

    num_decoders: tuple[int, ...] = (1, 2, 3, 4)
    """Numbers of decoders K."""
    num_bins: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Numbers of bins L."""
    num_candidates: int = 2**15
    """Candidates N."""
    num_trials: int = 10_000
    """Symbols a point."""
    num_repeats: int = 1
    """Points are averaged over so many keys."""
    num_choosing: int = 10_000
    """Symbols on which a target variance is chosen; others than those of the point."""
    num_posterior: int = 300
    """Symbols a point of the posterior mean; 0 leaves it out."""
    seed: int = 0
    """Of everything."""
    out: Path = Path("results/gaussian_tables")
    """Folder for the tables (.csv) and figures (.png)."""
    full: bool = False
    """The paper's size: 100,000 symbols and 10 repeats a point."""

    def run(self, report: shared.Report) -> list:
        for name in ("num_trials", "num_repeats", "num_choosing"):
            checks.count(getattr(self, name), name)
        key = shared.root_key(self.seed)
        cells = [(s, k, size) for s in SCHEMES for k in self.num_decoders for size in self.num_bins]
        codes = {
            cell: self._codec(*cell) for cell in cells
        }  # bad sizes are refused before any work
        rows: list[Row] = []
        with shared.unfinished(self.out) as keep:
            for at, cell in enumerate(cells):
                report("codes", at, len(cells))
                rows += self._points(codes[cell], key, keep)
            report("codes", len(cells), len(cells))
            quiet = [cell for cell in cells if cell[0] == "gls"] if self.num_posterior else []
            for at, cell in enumerate(quiet):
                report("posterior means", at, len(quiet))
                rows.append(self._posterior(codes[cell], key, keep))
        controls = [
            self._control(k, size, key) for k in self.num_decoders for size in self.num_bins
        ]
        shared.write_csv(self.out / "gaussian_tables.csv", rows)
        shared.write_csv(self.out / "controls.csv", controls)
        shared.save(self.out / "gaussian_tables.png", _rate_distortion(rows, controls))
        shared.save(self.out / "match.png", _matches(rows))
        return [_table(rows), *_verdict(rows)]

    def _codec(
        self,
        scheme: str,
        num_decoders: int,
        num_bins: int,
        variance: float = PAPERS[0],
        search="ordered",
    ):
        return compression.GaussianCodec(
            num_decoders,
            self.num_candidates,
            num_bins,
            variance,
            SIDE_VARIANCE,
            scheme=scheme,
            search=search,
        )

    def _points(self, codec, key, keep) -> list[Row]:
        """The published choice of the target variance, and the best for either metric."""
        choosing, *keys = races.split_key(key, self.num_repeats + 1)
        tried = {
            variance: self._measure(codec, variance, [choosing], self.num_choosing, "plug_in", keep)
            for variance in WIDER
        }
        chosen = {
            "mean_of_db": min(PAPERS, key=lambda v: tried[v][4]),
            "db_of_mean": min(WIDER, key=lambda v: tried[v][6]),
        }
        known = published().get((codec.scheme, codec.num_decoders, codec.num_bins))
        if known is not None and self.num_candidates == 2**15:
            chosen["paper"] = known[0]
        rows = [_row(codec, "plug_in", "fixed", PAPERS[0], tried[PAPERS[0]], None)]
        for purpose, variance in chosen.items():
            found = self._measure(codec, variance, keys, self.num_trials, "plug_in", keep)
            rows.append(
                _row(
                    codec,
                    "plug_in",
                    purpose,
                    variance,
                    found,
                    known[1] if purpose == "paper" else None,
                )
            )
        return rows

    def _posterior(self, codec, key, keep) -> Row:
        """The best target variance for the mean squared error of the posterior mean; chosen and
        measured apart.
        """
        choosing, measuring = races.split_key(races.private_key(key))
        tried = {
            variance: self._measure(
                codec, variance, [choosing], self.num_posterior, "posterior_mean", keep
            )[6]
            for variance in COARSE
        }
        best = min(COARSE, key=tried.__getitem__)
        found = self._measure(codec, best, [measuring], self.num_posterior, "posterior_mean", keep)
        return _row(codec, "posterior_mean", "db_of_mean", best, found, None)

    def _measure(
        self, codec, variance: float, keys: Sequence, num_trials: int, estimator: str, keep
    ) -> np.ndarray:
        """Means over keys: match, its error, bound, its error, then both metrics with their errors."""
        codec = dataclasses.replace(codec, target_variance=variance)

        def measure():
            runs = [
                compression.simulate(codec, key, num_trials, estimator=estimator) for key in keys
            ]
            parts = [(run.match, run.bound, *run.distortion) for run in runs]
            means = np.array([[part.mean for part in run] for run in parts])
            errors = np.array([[part.standard_error for part in run] for run in parts])
            error = np.sqrt(np.mean(errors**2, axis=0) / len(keys))
            return np.stack([means.mean(axis=0), error], axis=1).reshape(-1)

        data = [np.asarray(jax.random.key_data(key)) for key in keys]
        return keep(measure, codec, np.stack(data), num_trials, estimator)

    def _control(self, num_decoders: int, num_bins: int, key) -> Control:
        law = compression.GaussianSource(PAPERS[0], SIDE_VARIANCE)
        source, sides, _ = monte_carlo_distortion.draw_symbols(law, key, 100_000, num_decoders)
        silence = monte_carlo_distortion.distortion(
            np.min((law.zero_rate(sides) - source) ** 2, axis=0)
        )
        converse = compression.best_of_converse(math.log2(num_bins), num_decoders, SIDE_VARIANCE)
        values = (float(part.mean) for part in silence)
        return Control(num_decoders, num_bins, *values, 10 * math.log10(converse))


def published() -> dict[tuple[str, int, int], tuple[float, float]]:
    """The paper's target variance and distortion of (scheme, K, L)."""
    with PUBLISHED.open() as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return {
            (line["scheme"], int(line["num_decoders"]), int(line["num_bins"])): (
                float(line["target_variance"]),
                float(line["distortion_db"]),
            )
            for line in lines
        }


def _row(codec, estimator: str, purpose: str, variance: float, found, known) -> Row:
    match, match_error, bound, _, *metrics = map(float, found)
    shown = bound if codec.scheme == "gls" or codec.num_decoders == 1 else None
    code = (codec.scheme, codec.num_decoders, codec.num_bins)
    return Row(*code, estimator, purpose, variance, match, match_error, shown, *metrics, known)


def _verdict(rows: Sequence[Row]) -> list[str]:
    """How many published points are met, and how the match probability stands to its bound."""
    bounded = [row for row in rows if row.bound is not None and row.scheme == "gls"]
    lowest = min(bounded, key=lambda row: (row.match - row.bound) / row.match_error, default=None)
    lines = []
    if lowest is not None:
        margin = (lowest.match - lowest.bound) / lowest.match_error
        lines.append(
            f"matches of GLS less their bound: at least {margin:+.1f} standard errors in {len(bounded)} rows"
        )
    known = [row for row in rows if row.published is not None]
    if known:
        met = [
            abs(row.mean_of_db - row.published) <= 4 * row.mean_of_db_error + 0.1 for row in known
        ]
        worst = max(known, key=lambda row: abs(row.mean_of_db - row.published))
        lines.append(
            f"{sum(met)} of {len(met)} published points within 4 standard errors plus 0.1 dB; "
            f"largest difference {worst.mean_of_db - worst.published:+.3f} dB (± {worst.mean_of_db_error:.3f}) at "
            f"{worst.scheme}, K = {worst.num_decoders}, L = {worst.num_bins}"
        )
    return lines


def _table(rows: Sequence[Row]):
    columns = "scheme num_decoders num_bins chosen_for target_variance match mean_of_db mean_of_db_error db_of_mean"
    lines = [
        [
            *(getattr(row, name) for name in columns.split()),
            "" if row.published is None else f"{row.published:.4f}",
        ]
        for row in rows
        if row.estimator == "plug_in" and row.chosen_for != "fixed"
    ]
    header = (
        "scheme",
        "K",
        "L",
        "chosen for",
        "s_W",
        "match",
        "mean of dB",
        "± s.e.",
        "dB of mean",
        "paper",
    )
    return shared.table("Gaussian source, distortion of the best decoder", header, lines)


def _rate_distortion(rows: Sequence[Row], controls: Sequence[Control]) -> Figure:
    counts = sorted({row.num_decoders for row in rows})
    figure = Figure(figsize=(3.3 * len(counts), 6.5), layout="constrained")
    grid = figure.subplots(2, len(counts), sharex=True, sharey="row", squeeze=False)
    for column, count in enumerate(counts):
        for axes, metric in zip(grid[:, column], METRICS, strict=True):
            for colour, scheme in enumerate(SCHEMES):
                curve = [row for row in rows if _is(row, scheme, count, "plug_in", metric)]
                _line(axes, curve, metric, f"C{colour}-o", scheme)
            _line(
                axes,
                [r for r in rows if _is(r, "gls", count, "posterior_mean", metric)],
                metric,
                "C2-o",
                "posterior mean",
            )
            mine = [control for control in controls if control.num_decoders == count]
            bits = [math.log2(control.num_bins) for control in mine]
            axes.plot(
                bits,
                [getattr(control, f"silence_{metric}") for control in mine],
                "k:",
                label="silence",
            )
            if metric == "db_of_mean":
                name = "Wyner-Ziv" if count == 1 else "converse"
                axes.plot(bits, [control.converse_db for control in mine], "k--", label=name)
            points = [
                row for row in rows if row.num_decoders == count and row.published is not None
            ]
            if metric == "mean_of_db" and points:
                axes.plot(
                    [math.log2(r.num_bins) for r in points],
                    [r.published for r in points],
                    "kx",
                    label="paper",
                )
            axes.grid(alpha=0.3)
        grid[0, column].set_title(f"K = {count}")
        grid[1, column].set_xlabel("bits a symbol")
    grid[0, 0].set_ylabel("mean of dB")
    grid[1, 0].set_ylabel("dB of the mean squared error")
    for axes in grid[:, 0]:
        axes.legend(fontsize="small")
    figure.suptitle(
        "Distortion of the best decoder; the target variance is chosen for each row's metric"
    )
    return figure


def _matches(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for colour, count in enumerate(sorted({row.num_decoders for row in rows})):
        for scheme, mark in zip(SCHEMES, ("o-", "s:"), strict=True):
            curve = [row for row in rows if _is(row, scheme, count, "plug_in", "fixed")]
            bits, label = [math.log2(row.num_bins) for row in curve], f"K = {count}"
            axes.plot(
                bits,
                [r.match for r in curve],
                f"C{colour}{mark}",
                label=label if scheme == "gls" else None,
            )
            if scheme == "gls":
                axes.plot(bits, [row.bound for row in curve], f"C{colour}--", linewidth=1)
    axes.set(
        xlabel="bits a symbol",
        ylabel="P(one decoder has the encoder's candidate)",
        title="target variance .01",
    )
    axes.grid(alpha=0.3)
    axes.legend(title="GLS; dashed: its bound\ndotted: baseline", fontsize="small")
    return figure


def _is(row: Row, scheme: str, count: int, estimator: str, purpose: str) -> bool:
    return (row.scheme, row.num_decoders, row.estimator, row.chosen_for) == (
        scheme,
        count,
        estimator,
        purpose,
    )


def _line(axes, curve: Sequence[Row], metric: str, style: str, label: str) -> None:
    if curve:
        bits = [math.log2(row.num_bins) for row in curve]
        errors = [2 * getattr(row, f"{metric}_error") for row in curve]
        axes.errorbar(
            bits,
            [getattr(row, metric) for row in curve],
            errors,
            fmt=style,
            markersize=3,
            label=label,
        )
