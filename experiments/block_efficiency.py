"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Tables 1, 2, 3, 5: block efficiency.

The paper decodes with Qwen2.5-7B drafted by 0.5B (and Llama pairs), top-k 50, T = 1, L = 4, K up to
8 on 200 prompts of five data sets, and with two drafters of different temperatures, L = 5, target
T = 2. Here SmolLM2-135M-Instruct is drafted by itself without layers 12-17, on 50 questions of five
kinds, some rounds of each. The same is done for trees of about as many nodes as 8 chains of 4,
static ones and margin trees.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import decoding_runs, output, shared
from experiments.decoding_runs import LENGTH, Setting
from experiments.output import column, distinct, select
from gls_jax import decoding
from gls_jax.typing import Report

# Children of each node by depth: 4 + 8 + 8 + 8 = 28 nodes.
TREE = (4, 2, 1, 1)


class Row(NamedTuple):
    """One setting over all prompts and seeds."""

    part: str
    scheme: str
    shape: str
    num_drafts: int
    temperature: float
    draft_temperatures: str
    block_efficiency: float
    standard_error: float
    first_accepted: float
    rounds: int


def chains() -> list[Setting]:
    """Tables 1, 3 and 5: K chains of length 4."""
    scheme_names = {
        1: ("gls", "single", "block"),
        2: ("gls", "gls_strong", "gumbel_topk", "spectr"),
        4: ("gls", "gls_strong", "gumbel_topk", "spectr"),
        8: ("gls", "gls_strong", "poisson", "gumbel_topk", "specinfer", "spectr"),
    }
    return [
        Setting("chains", scheme, num_drafts)
        for num_drafts, names in scheme_names.items()
        for scheme in names
    ]


def shapes() -> list[Setting]:
    """Trees of about as many nodes as eight chains of four."""
    margin_tree = decoding.MarginTree(32, LENGTH)
    return [
        Setting("shapes", "gumbel_topk", num_drafts=4, tree=TREE),
        Setting("shapes", "specinfer_wor", num_drafts=4, tree=TREE),
        Setting("shapes", "traversal", num_drafts=4, tree=TREE),
        Setting("shapes", "gumbel_topk", num_drafts=8, tree=margin_tree),
    ]


def diverse() -> list[Setting]:
    """Table 2: two chains of length 5 at different temperatures, target at 2."""
    diverse_setting = Setting("diverse", "gls", num_drafts=2, length=5, temperature=2.0)
    return [
        diverse_setting._replace(scheme=scheme, draft_temperatures=draft_temperatures)
        for draft_temperatures in ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
        for scheme in ("gls", "specinfer")
    ]


@dataclasses.dataclass(frozen=True)
class BlockEfficiency:
    """GLS paper, Tables 1, 2, 3 and 5: emitted tokens per target call, also with trees.

    Attributes:
        rounds: Rounds of each prompt.
        seeds: Seeds for each prompt.
        num_prompts: Prompts, cycling over five kinds, at most 50.
        batch: Requests decoded together; the figures do not depend on it.
        drop: First and last of the layers that the drafter leaves out.
        parts: Which tables.
        out: Folder for block_efficiency.csv and block_efficiency.png.
        full: 24 rounds, five seeds.
    """

    FULL: ClassVar[dict] = {"rounds": 24, "seeds": 5}

    rounds: int = 5
    seeds: int = 1
    num_prompts: int = 50
    batch: int = 25
    drop: tuple[int, int] = (12, 17)
    parts: tuple[str, ...] = ("chains", "diverse", "shapes")
    out: Path = Path("results/block_efficiency")
    full: bool = False

    def run(self, report: Report) -> list:
        settings_of = {"chains": chains, "diverse": diverse, "shapes": shapes}
        settings: list[Setting] = []
        for part in self.parts:
            if part not in settings_of:
                raise ValueError(f"parts: expected some of {', '.join(settings_of)}, got {part!r}")
            settings += settings_of[part]()
        shared.check_counts(self, "rounds", "seeds", "num_prompts", "batch")
        rows = self._rows(settings, report)
        drafter_text = f"drafter without layers {self.drop[0]}-{self.drop[1]}"
        title = f"SmolLM2-135M-Instruct, {drafter_text}, {self.num_prompts} prompts"
        output.save_results(self.out, "block_efficiency", rows, _figure(rows, title))
        return [_table(rows, title)]

    def _rows(self, settings: list[Setting], report: Report) -> list[Row]:
        target, drafter = decoding_runs.load_pair(self.drop)
        prompts = decoding_runs.question_prompts(target, self.num_prompts)
        rows = []
        num_done = 0
        with shared.resumable_arrays(self.out) as compute_once:
            for setting in settings:
                seed_histograms = []
                for seed in range(self.seeds):
                    report("settings x seeds", num_done, len(settings) * self.seeds)
                    histogram = compute_once(
                        partial(self._histogram, target, drafter, prompts, setting, seed),
                        # The tree as text, so that runs of earlier versions can be resumed.
                        setting._replace(tree=str(setting.tree)),
                        seed,
                        self.rounds,
                        self.num_prompts,
                        self.drop,
                    )
                    seed_histograms.append(histogram)
                    num_done += 1
                rows.append(row_of(setting, np.concatenate(seed_histograms)))
        return rows

    def _histogram(self, target, drafter, prompts, setting: Setting, seed: int) -> np.ndarray:
        request_keys = decoding_runs.request_keys(seed, len(prompts))
        return decoding_runs.acceptance_histogram(
            target, drafter, prompts, request_keys, setting, self.rounds, self.batch
        )


def row_of(setting: Setting, histogram: np.ndarray) -> Row:
    """The mean over all rounds, with the standard error of independent prompts and seeds."""
    # A round that accepts n drafts emits n + 1 tokens.
    emitted_tokens = np.arange(1, histogram.shape[1] + 1)
    total_histogram = histogram.sum(axis=0)
    num_rounds = total_histogram.sum()
    # Rounds of one prompt depend on one another: the error is that of the prompts' means.
    prompt_means = histogram @ emitted_tokens / histogram.sum(axis=1)
    standard_error = float("nan")
    if len(prompt_means) > 1:
        standard_error = float(prompt_means.std(ddof=1) / np.sqrt(len(prompt_means)))
    draft_temperatures = setting.draft_temperatures or ()
    return Row(
        part=setting.part,
        scheme=setting.scheme,
        shape=setting.shape,
        num_drafts=setting.num_drafts,
        temperature=setting.temperature,
        draft_temperatures=", ".join(f"{value:g}" for value in draft_temperatures),
        block_efficiency=float(total_histogram @ emitted_tokens / num_rounds),
        standard_error=standard_error,
        first_accepted=float(1 - total_histogram[0] / num_rounds),
        rounds=int(num_rounds),
    )


def _table(rows: list[Row], title: str):
    header = (
        "part",
        "scheme",
        "drafts",
        "T",
        "draft T",
        "tokens per call",
        "± s.e.",
        "first accepted",
        "rounds",
    )
    # All fields except `num_drafts`, which `shape` says too.
    table_lines = [(*row[:3], f"{row.temperature:g}", *row[5:]) for row in rows]
    return output.table(title, header, table_lines)


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    chain_axes, bar_axes = figure.subplots(1, 2)
    _draw_chains(chain_axes, select(rows, part="chains"))
    # Settings of about as many drafts as eight chains of four, and those of Table 2.
    _draw_bars(bar_axes, [row for row in rows if row.part != "chains" or row.num_drafts == 8])
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_chains(axes, rows: list[Row]) -> None:
    for scheme in distinct(rows, "scheme"):
        scheme_rows = select(rows, scheme=scheme)
        axes.errorbar(
            column(scheme_rows, "num_drafts"),
            column(scheme_rows, "block_efficiency"),
            column(scheme_rows, "standard_error"),
            marker="o",
            markersize=4,
            capsize=2,
            label=scheme,
        )
    # K doubles from point to point.
    axes.set(xlabel="K chains of length 4", ylabel="tokens a target call", xscale="log")
    axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.minorticks_off()
    if rows:
        axes.legend(fontsize="small")


def _draw_bars(axes, rows: list[Row]) -> None:
    # The best one on top.
    rows = sorted(rows, key=lambda row: row.block_efficiency)
    axes.barh(
        [f"{row.scheme}, {row.draft_temperatures or row.shape}" for row in rows],
        column(rows, "block_efficiency"),
        xerr=column(rows, "standard_error"),
        color="C0",
    )
    axes.tick_params(labelsize=7)
    axes.set(xlabel="tokens a target call")
