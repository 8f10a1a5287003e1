"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Tables 1, 2 and 5: tokens a call of the
target.

The paper decodes with Qwen2.5-7B drafted by 0.5B (and Llama pairs), top-k 50, T = 1, L = 4, K up to
8 on 200 prompts of five data sets, and with two drafters of different temperatures, L = 5, target T
= 2. Here SmolLM2-135M-Instruct is drafted by itself without layers 12-17, on 50 questions of five
kinds, some rounds of each. The same is done for trees of about as many nodes as 8 chains of 4,
static ones and margin trees.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import questions, shared
from gls_jax import checks, decoding, models, races

LENGTH, TOP_K = 4, 50
TREE = (4, 2, 1, 1)  # 28 nodes


class Setting(NamedTuple):
    """How is drafted and verified: K chains of length L, or a tree."""

    part: str
    scheme: str
    num_drafts: int
    length: int = LENGTH
    tree: Any = None
    temperature: float = 1.0
    draft_temperatures: tuple[float, ...] | None = None

    @property
    def shape(self) -> str:
        """In words."""
        if isinstance(self.tree, decoding.MarginTree):
            return f"margin tree of {self.tree.budget}"
        return (
            "tree " + "-".join(map(str, self.tree))
            if self.tree
            else f"{self.num_drafts} x {self.length}"
        )


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
    """Tables 1 and 5: K chains of length 4."""
    one = [Setting("chains", name, 1) for name in ("gls", "single", "block")]
    some = [
        Setting("chains", name, k)
        for k in (2, 4)
        for name in ("gls", "gls_strong", "gumbel_topk", "spectr")
    ]
    most = ("gls", "gls_strong", "poisson", "gumbel_topk", "specinfer", "spectr")
    return [*one, *some, *(Setting("chains", name, 8) for name in most)]


def shapes() -> list[Setting]:
    """About as many nodes as eight chains of four."""
    static = [
        Setting("shapes", name, 4, tree=TREE)
        for name in ("gumbel_topk", "specinfer_wor", "traversal")
    ]
    return [*static, Setting("shapes", "gumbel_topk", 8, tree=decoding.MarginTree(32, LENGTH))]


def diverse() -> list[Setting]:
    """Table 2: two chains of length 5 at temperatures of their own, target at 2."""
    pairs = ((0.5, 1.0), (1.0, 0.5), (1.0, 1.0))
    return [
        Setting("diverse", name, 2, 5, None, 2.0, pair)
        for pair in pairs
        for name in ("gls", "specinfer")
    ]


@dataclasses.dataclass(frozen=True)
class BlockEfficiency:
    """GLS paper, Tables 1, 2 and 5: emitted tokens a target call, chains, diverse drafters and
    trees.
    """

    FULL: ClassVar[dict] = {"rounds": 24, "seeds": 5}

    rounds: int = 5
    """Rounds of each prompt."""
    seeds: int = 1
    """Seeds for each prompt."""
    num_prompts: int = 50
    """Prompts, of five kinds in turn, at most 50."""
    batch: int = 25
    """Requests decoded together; the figures do not depend on it."""
    drop: tuple[int, int] = (12, 17)
    """First and last of the layers that the drafter leaves out."""
    parts: tuple[str, ...] = ("chains", "diverse", "shapes")
    """Which tables."""
    out: Path = Path("results/block_efficiency")
    """Folder for block_efficiency.csv and block_efficiency.png."""
    full: bool = False
    """24 rounds, five seeds."""

    def run(self, report: shared.Report) -> list:
        parts = {"chains": chains, "diverse": diverse, "shapes": shapes}
        if unknown := [name for name in self.parts if name not in parts]:
            raise ValueError(f"parts: expected some of {', '.join(parts)}, got {unknown[0]!r}")
        for name in ("rounds", "seeds", "num_prompts", "batch"):
            checks.count(getattr(self, name), name)
        settings = [setting for name in self.parts for setting in parts[name]()]
        target, drafter = pair(self.drop)
        prompts = prompts_of(target, self.num_prompts)
        work = [(setting, seed) for setting in settings for seed in range(self.seeds)]
        with shared.unfinished(self.out) as keep:
            histograms = []
            for done, (setting, seed) in enumerate(work):
                report("settings x seeds", done, len(work))
                asked = (
                    setting._replace(tree=str(setting.tree)),
                    seed,
                    self.rounds,
                    self.num_prompts,
                    self.drop,
                )
                histograms.append(
                    keep(
                        lambda s=setting, k=seed: self._histogram(target, drafter, prompts, s, k),
                        *asked,
                    )
                )
        each = [
            np.concatenate(histograms[at : at + self.seeds])
            for at in range(0, len(work), self.seeds)
        ]
        rows = [row_of(*both) for both in zip(settings, each, strict=True)]
        shared.write_csv(self.out / "block_efficiency.csv", rows)
        title = f"SmolLM2-135M-Instruct, drafter without layers {self.drop[0]}-{self.drop[1]}, {len(prompts)} prompts"
        shared.save(self.out / "block_efficiency.png", _figure(rows, title))
        header = (
            "part",
            "scheme",
            "drafts",
            "T",
            "draft T",
            "tokens a call",
            "± s.e.",
            "first accepted",
            "rounds",
        )
        lines = [
            (r.part, r.scheme, r.shape, f"{r.temperature:g}", r.draft_temperatures, *r[6:])
            for r in rows
        ]
        return [shared.table(title, header, lines)]

    def _histogram(self, target, drafter, prompts, setting: Setting, seed: int) -> np.ndarray:
        """Rounds by accepted drafts of every prompt, `i64[prompts, depth + 1]`."""
        keys = races.keys.fold_in_each(shared.root_key(seed), np.arange(len(prompts)))
        found = []
        for start in range(0, len(prompts), self.batch):
            some = slice(start, start + self.batch)
            new = self.rounds * (setting.length + 1)  # nobody is ready before the last round
            run = start_run(target, drafter, prompts[some], keys[some], setting, new)
            for _ in range(self.rounds):
                next(run, None)
            found.append(run.generation.metrics.histogram)
        return np.concatenate(found)


def pair(dropped: tuple[int, int]) -> tuple[models.Checkpoint, decoding.LanguageModel]:
    """SmolLM2 and itself without some layers."""
    target = models.load("smollm2")
    kept = shared.others(dropped, target.config.num_layers)
    return target, models.language_model(models.keep_layers(target.model, kept))


def prompts_of(target: models.Checkpoint, count: int) -> list[list[int]]:
    """Prompts as token ids, the kinds in turn."""
    texts = [text for group in zip(*questions.KINDS.values(), strict=True) for text in group]
    if count > len(texts):
        raise ValueError(f"num_prompts: expected at most {len(texts)}, got {count}")
    assert target.tokenizer is not None  # SmolLM2's
    return [target.tokenizer.encode(f"Question: {text}\nAnswer:").ids for text in texts[:count]]


def start_run(
    target, drafter, prompts, keys, setting: Setting, new: int, stops=()
) -> decoding.Stream:
    """A run of one setting."""
    return decoding.stream(
        keys,
        target,
        drafter,
        prompts,
        options=decoding.DecodeOptions(
            scheme=setting.scheme,
            num_drafts=setting.num_drafts,
            draft_length=setting.length,
            tree=setting.tree,
            temperature=setting.temperature,
            draft_temperatures=setting.draft_temperatures,
            top_k=TOP_K,
            max_new_tokens=new,
            stop_tokens=stops,
        ),
    )


def row_of(setting: Setting, histogram: np.ndarray) -> Row:
    """Mean over all rounds; the standard error is that of the means of prompts and seeds, which are
    independent.
    """
    tokens = np.arange(1, histogram.shape[1] + 1)
    each = histogram @ tokens / histogram.sum(axis=1)
    total = histogram.sum(axis=0)
    draft = (
        ""
        if setting.draft_temperatures is None
        else ", ".join(f"{t:g}" for t in setting.draft_temperatures)
    )
    return Row(
        setting.part,
        setting.scheme,
        setting.shape,
        setting.num_drafts,
        setting.temperature,
        draft,
        float(total @ tokens / total.sum()),
        float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan"),
        float(1 - total[0] / total.sum()),
        int(total.sum()),
    )


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    chain = [row for row in rows if row.part == "chains"]
    for name in dict.fromkeys(row.scheme for row in chain):
        own = [row for row in chain if row.scheme == name]
        x, y, error = zip(
            *((row.num_drafts, row.block_efficiency, row.standard_error) for row in own),
            strict=True,
        )
        left.errorbar(x, y, error, marker="o", markersize=4, capsize=2, label=name)
    left.set(xlabel="K chains of length 4", ylabel="tokens a target call", xscale="log")
    left.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    left.minorticks_off()
    if chain:
        left.legend(fontsize="small")
    others = [row for row in rows if row.part != "chains" or row.num_drafts == 8]
    others.sort(key=lambda row: row.block_efficiency)
    names = [f"{row.scheme}, {row.draft_temperatures or row.shape}" for row in others]
    right.barh(
        names,
        [row.block_efficiency for row in others],
        xerr=[row.standard_error for row in others],
        color="C0",
    )
    right.tick_params(labelsize=7)
    right.set(xlabel="tokens a target call")
    figure.suptitle(title, fontsize="medium")
    return figure
