"""Trees at equal cost of verification: tokens per target call against the number of verified nodes.

Engines draft without noise: chains of the likeliest token, trees of the likeliest paths (EAGLE-2,
DDTree), while the target samples alone; here that is the scheme `topk`. What do schemes gain that
share noise with the target, or that test drafts by their probabilities, if the target verifies as
many nodes in a call? All have the same drafter, SmolLM2-135M-Instruct without layers 12-17, top-k
50, and questions of five kinds.

At temperature 0 samples of the drafter are its likeliest token, so every scheme but `topk` drafts
one chain. The drafter of `topk` is at temperature 1 there, and margin trees are best-first trees.

Decoding every setting would take a day on two cores. Most are counted along texts that plain
generation emitted once, see `text_rounds.py`:

* *predicted*: chains and static trees, by the planner's formulas. `specinfer_wor` and
  `weighted_importance` have none, and are *estimated* from random lists at each position;
* *replayed*: best-first trees, by the engine and the drafter, with the text as target;
* *decoded*, by the engine and both models: margin trees, which learn from the target and emit the
  same text, and `traversal`, which compares whole paths and emits others.

The shapes of chains and static trees are chosen by two-fold cross-validation over the prompts, of
all that have about as many nodes as the budget. `traversal` has the static tree that is best for
`specinfer_wor` on all prompts. Best-first and margin trees have one depth, 6 (8 at temperature 0);
the drafter reads a quarter of the budget in each call, at most eight nodes, and tries 16 tokens
after each. Their *ceiling* is a tree with all 16 tokens after every node, an upper bound for every
tree of these candidates. A tree that knew the emitted tokens would reach it with one node for each
level. (Margin trees may choose other candidates, so it is not quite a bound for them.)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments import budget_shapes, decoding_runs, output, shared, text_rounds, tree_budget_rows
from experiments.decoding_runs import Setting
from experiments.shared import ComputeOnce
from experiments.text_rounds import Predictor, Texts
from experiments.tree_budget_rows import Point
from gls_jax import decoding, models, planner
from gls_jax.typing import Report

# Of best-first and margin trees; at temperature 0 paths are longer.
DEPTH = 6
GREEDY_DEPTH = 8
# Most nodes that the drafter reads in a call, and tokens tried after each.
FRONTIER = 8
CHILDREN = 16
NODES = (8, 16, 32, 64)

MANY_DRAFTS = (
    "topk",
    "gumbel_topk",
    "poisson",
    "gls",
    "gls_strong",
    "naive",
    "specinfer",
    "spectr",
    "optimal",
)
ONE_DRAFT = ("topk", "single", "minhash", "block")
# Static trees only: there is no formula for chains.
ESTIMATED = ("specinfer_wor", "weighted_importance")
DYNAMIC_TREES: dict[str, tuple[str, type[decoding.BestFirstTree | decoding.MarginTree], str]] = {
    "best-first": ("topk", decoding.BestFirstTree, "replayed"),
    "margin": ("gumbel_topk", decoding.MarginTree, "decoded"),
}
# Settings that are decoded too, at temperature 1.
CHECKED = (
    planner.Setting("gls", 2, 4, (2, 1, 1, 1)),
    planner.Setting("specinfer_wor", 2, 4, (2, 1, 1, 1)),
    planner.Setting("spectr", 2, 4),
)


@dataclasses.dataclass(frozen=True)
class TreeBudget:
    """Tokens per target call against verified nodes: chains, static, best-first and margin trees.

    Attributes:
        nodes: Verified nodes, some of 8, 16, 32, 64.
        temperatures: Of the target.
        num_prompts: Prompts, cycling over five kinds, from 2 to 50.
        rounds: Rounds of each prompt.
        new_tokens: Length of the texts along which rounds are counted; a few texts may end early.
        decoded_nodes: Budgets of traversal, which has to be decoded.
        checks: Whether to decode some settings that are predicted or replayed.
        batch: Requests decoded together; the figures do not depend on it.
        drop: First and last of the layers that the drafter leaves out.
        out: Folder for tree_budget.csv and tree_budget.png.
        full: 50 prompts, 21 rounds of each, texts of 128 tokens, all budgets, checks.
    """

    FULL: ClassVar[dict] = {
        "num_prompts": 50,
        "rounds": 21,
        "new_tokens": 128,
        "decoded_nodes": NODES,
        "checks": True,
    }

    nodes: tuple[int, ...] = NODES
    temperatures: tuple[float, ...] = (0.0, 0.6, 1.0)
    num_prompts: int = 10
    rounds: int = 8
    new_tokens: int = 48
    decoded_nodes: tuple[int, ...] = (8, 16)
    checks: bool = False
    batch: int = 25
    drop: tuple[int, int] = (12, 17)
    out: Path = Path("results/tree_budget")
    full: bool = False

    def run(self, report: Report) -> list:
        self._check()
        target, drafter = decoding_runs.load_pair(self.drop)
        prompts = decoding_runs.question_prompts(target, self.num_prompts)
        keys = decoding_runs.request_keys(0, self.num_prompts)
        rows = []
        with shared.resumable_arrays(self.out) as compute_once:
            for number, temperature in enumerate(self.temperatures):
                part = f"T = {temperature:g} ({number + 1} of {len(self.temperatures)})"
                none_yet = np.zeros((self.num_prompts, 0), np.int32)
                run = _TemperatureRun(
                    options=self,
                    target=target,
                    drafter=drafter,
                    texts=Texts(prompts, keys, temperature, none_yet),
                    compute_once=compute_once,
                    report=partial(report, part),
                )
                rows += tree_budget_rows.rows_of(run.points())
        drafter_text = f"drafter without layers {self.drop[0]}-{self.drop[1]}"
        title = f"SmolLM2-135M-Instruct, {drafter_text}, {self.num_prompts} prompts"
        output.save_results(self.out, "tree_budget", rows, tree_budget_rows.figure(rows, title))
        return [tree_budget_rows.table(rows, title)]

    def _check(self) -> None:
        shared.check_counts(self, "num_prompts", "new_tokens", "rounds", "batch")
        if self.num_prompts < 2:
            raise ValueError(f"num_prompts: expected at least 2, got {self.num_prompts}")
        for name in ("nodes", "decoded_nodes"):
            for value in getattr(self, name):
                if value not in NODES:
                    expected = ", ".join(map(str, NODES))
                    raise ValueError(f"{name}: expected some of {expected}, got {value}")
        for temperature in self.temperatures:
            decoding.check_sampling(temperature)


@dataclasses.dataclass
class _TemperatureRun:
    """Tokens and rounds of all settings at one temperature.

    Attributes:
        options: of the experiment.
        target, drafter: the models.
        texts: the prompts; `points` replaces the tokens.
        compute_once: reads arrays of a run that was stopped.
        report: called with arrays done and all arrays.
        num_done: arrays done.
    """

    options: TreeBudget
    target: models.Checkpoint
    drafter: decoding.LanguageModel
    texts: Texts
    compute_once: ComputeOnce
    report: Callable[[int, int], None]
    num_done: int = 0

    def points(self) -> list[Point]:
        """All points of this temperature."""
        plain = partial(text_rounds.plain_tokens, self.target, new_tokens=self.options.new_tokens)
        self.texts = self.texts._replace(tokens=self._once(self._batched(plain), "texts"))
        pairs = partial(text_rounds.pairs_along, self.target, self.drafter, self.texts)
        num_texts = len(self.texts.prompts)
        predictor = Predictor(self._once(pairs, "pairs"), num_texts, self.options.rounds)
        points = [*self._predicted(predictor), *self._dynamic(predictor)]
        # At temperature 0 margin trees are best-first trees, and others one chain.
        if self.texts.temperature:
            points += self._decoded(predictor)
        return points

    def _once(self, compute: Callable[[], Any], *configuration) -> np.ndarray:
        options = self.options
        common = (options.num_prompts, options.drop, options.new_tokens, self.texts.temperature)
        array = self.compute_once(compute, *common, *configuration)
        self.num_done += 1
        self.report(self.num_done, self._num_arrays())
        return array

    def _num_arrays(self) -> int:
        """Arrays that take time: texts, pairs, replays and decoded settings."""
        options = self.options
        if not self.texts.temperature:
            return 2 + len(options.nodes)
        num_checks = len(CHECKED) if self._is_checked() else 0
        return 2 + 2 * len(options.nodes) + len(options.decoded_nodes) + num_checks

    def _is_checked(self) -> bool:
        return self.options.checks and self.texts.temperature == 1

    def _batched(self, function: Callable[[Texts], np.ndarray], axis=0) -> Callable[[], np.ndarray]:
        """The function over all texts, which are on this axis of the result."""
        starts = range(0, len(self.texts.prompts), self.options.batch)
        batches = [self.texts.part(slice(first, first + self.options.batch)) for first in starts]
        return lambda: np.concatenate([function(batch) for batch in batches], axis=axis)

    def _predicted(self, predictor: Predictor) -> Iterator[Point]:
        """Chains and static trees, each half of the prompts with the best of the other half."""
        kinds: list[tuple[str, tuple[str, ...], Callable[[str, int], list[planner.Setting]]]]
        kinds = [
            ("one chain", ONE_DRAFT, budget_shapes.one_chain),
            ("chains", MANY_DRAFTS, budget_shapes.chains),
            ("static", (*MANY_DRAFTS, *ESTIMATED), budget_shapes.static_trees),
        ]
        for tree, names, settings_of in kinds:
            # At temperature 0 all other schemes draft the one chain of `topk`.
            schemes = names if self.texts.temperature else ("topk",)
            for scheme, nodes in itertools.product(schemes, self.options.nodes):
                settings = settings_of(scheme, nodes)
                shape, counts = self._best_elsewhere(predictor, settings)
                how = "estimated" if scheme in ESTIMATED else "predicted"
                yield self._point(tree, scheme, nodes, shape, how, counts)

    def _best_elsewhere(
        self, predictor: Predictor, settings: Sequence[planner.Setting]
    ) -> tuple[str, np.ndarray]:
        """Counts `[2, D]` of each text in the setting that is best for the other half."""
        all_counts = np.stack([predictor.counts(setting) for setting in settings])
        # The kinds of questions alternate, so that each half has all.
        half = np.arange(len(self.texts.prompts)) % 2
        counts = np.zeros(all_counts.shape[1:])
        shapes = []
        for own_half in (0, 1):
            num_tokens, num_rounds = all_counts[:, :, half != own_half].sum(axis=-1).T
            best = int(np.argmax(num_tokens / num_rounds))
            counts[:, half == own_half] = all_counts[best][:, half == own_half]
            shapes.append(budget_shapes.shape_text(settings[best]))
        return " or ".join(dict.fromkeys(shapes)), counts

    def _dynamic(self, predictor: Predictor) -> Iterator[Point]:
        """Best-first and margin trees with their ceilings.

        Best-first trees are replayed. Margin trees are decoded: they learn from the target.
        """
        temperature = self.texts.temperature
        depth = DEPTH if temperature else GREEDY_DEPTH
        for tree, (scheme, tree_type, how) in DYNAMIC_TREES.items():
            # Without noise in the drafts a margin tree is one chain.
            if tree == "margin" and not temperature:
                continue
            ceiling = predictor.ceiling(scheme, CHILDREN, depth)
            for nodes in self.options.nodes:
                words = f"{CHILDREN} after every node, depth {depth}"
                yield self._point("ceiling", scheme, nodes, words, "predicted", ceiling)
                shape = tree_type(nodes, depth, min(FRONTIER, nodes // 4), CHILDREN)
                setting = Setting("tree budget", scheme, CHILDREN, depth, shape, temperature)
                count = partial(self._count_batch, setting, is_replay=how == "replayed")
                batched = self._batched(count, axis=1)
                counts = self._once(batched, how, scheme, str(shape), self.options.rounds)
                shape_words = f"depth {shape.depth}, {shape.frontier} read a call"
                yield self._point(tree, scheme, nodes, shape_words, how, counts)

    def _count_batch(self, setting: Setting, texts: Texts, *, is_replay: bool) -> np.ndarray:
        target: Any = self.target
        if is_replay:
            target = text_rounds.recorded_target(texts, self.drafter.vocab_size)
        rounds = self.options.rounds
        return text_rounds.counts_along(target, self.drafter, texts, setting, rounds)

    def _decoded(self, predictor: Predictor) -> Iterator[Point]:
        """`traversal`, and settings that are predicted too."""
        for nodes in self.options.decoded_nodes:
            settings = budget_shapes.static_trees("specinfer_wor", nodes)
            num_tokens, num_rounds = np.stack([predictor.counts(s).sum(-1) for s in settings]).T
            best = settings[int(np.argmax(num_tokens / num_rounds))]
            setting = best._replace(scheme="traversal")
            yield self._decoded_point(setting, nodes, "budget")
        if self._is_checked():
            for setting in CHECKED:
                tree = "chains" if setting.tree is None else "static"
                nodes = setting.shape.num_nodes
                how = "estimated" if setting.scheme in ESTIMATED else "predicted"
                counts = predictor.counts(setting)
                name, shape = setting.scheme, budget_shapes.shape_text(setting)
                yield self._point(tree, name, nodes, shape, how, counts, part="check")
                yield self._decoded_point(setting, nodes, "check")

    def _decoded_point(self, setting: planner.Setting, nodes: int, part: str) -> Point:
        run = Setting(
            "tree budget",
            setting.scheme,
            setting.num_drafts,
            setting.draft_length,
            setting.tree,
            self.texts.temperature,
        )
        rounds, batch = self.options.rounds, self.options.batch
        histogram = self._once(
            lambda: decoding_runs.acceptance_histogram(
                self.target, self.drafter, self.texts.prompts, self.texts.keys, run, rounds, batch
            ),
            "decoded",
            run,
            rounds,
        )
        num_tokens = histogram @ np.arange(1, histogram.shape[1] + 1)
        counts = np.stack([num_tokens, histogram.sum(axis=1)])
        tree = "chains" if setting.tree is None else "static"
        shape = budget_shapes.shape_text(setting)
        point = self._point(tree, setting.scheme, nodes, shape, "decoded", counts, part=part)
        # Its texts are others.
        return point._replace(is_paired=False)

    def _point(
        self,
        tree: str,
        scheme: str,
        nodes: int,
        shape: str,
        how: str,
        counts: np.ndarray,
        part: str = "budget",
    ) -> Point:
        return Point(
            part=part,
            temperature=self.texts.temperature,
            scheme=scheme,
            tree=tree,
            nodes=nodes,
            shape=shape,
            how=how,
            num_tokens=counts[0],
            num_rounds=counts[1],
            is_paired=True,
        )
