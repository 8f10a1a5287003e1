"""`gls-jax plan`."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from json import dumps
from pathlib import Path
from typing import ClassVar

import tyro
from rich import box
from rich.table import Table

from gls_jax import checks, planner
from gls_jax.cli.console import print_table, progress
from gls_jax.cli.option_groups import DEFAULT_MODELS, DEFAULT_SAMPLING, ModelNames, SamplingOptions
from gls_jax.distributions.text_dump import DumpRequest
from gls_jax.planner.pair_plan import PairPlan, PlanRequest, plan_pair
from gls_jax.runs import files

__all__ = ["Plan"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Predict block efficiency and token rate for a pair of models.

    For every scheme, number of drafts and draft length.
    """

    models: tyro.conf.OmitArgPrefixes[ModelNames] = DEFAULT_MODELS
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = DEFAULT_SAMPLING
    out: Path = Path("results/plan")
    """Folder for costs.json and plan.json."""
    dump: Path | None = None
    """Distributions along texts (gls-jax dump), made if missing. Default: the folder `dump` in
    --out.
    """
    num_kept: int = DumpRequest.num_kept
    """Most probable tokens of each distribution that a dump keeps, m."""
    num_positions: int = 4096
    """Positions of a dump that is made."""
    seed: int = DumpRequest.seed
    """Seed of the texts that the target samples."""
    costs: Path | None = None
    """Measured costs, such as another machine's costs.json. Default: those in --out, measured if
    missing.
    """
    acceptances: tuple[float, ...] = ()
    """In place of a dump: measured acceptances of the 1st, 2nd, ... draft, each given that the
    drafts before it are accepted. Chains of every length up to their number are planned.
    """
    schemes: tuple[str, ...] = (
        "single",
        "block",
        "gls",
        "gls_strong",
        "poisson",
        "gumbel_topk",
        "topk",
        "specinfer",
        "spectr",
    )
    """Schemes to compare."""
    num_drafts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of chains, K."""
    lengths: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
    """Lengths of chains, L."""
    trees: tuple[str, ...] = ("2,1", "2,2,1", "3,2,1", "4,2,1", "4,2,1,1")
    """Static trees, children at each depth."""
    batch: int = 1
    """Requests decoded together, for the costs."""
    text_length: int = 256
    """Tokens of a text, prompt included, for the costs."""
    check: int = 0
    """Number of texts to generate with the best choice of each scheme, to compare measurement and
    prediction.
    """
    show: int = 12
    """Rows of the table; plan.json has all."""
    json: bool = False
    """Print one JSON object."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Plan, write plan.json, print."""
        request = self._request()
        checks.count(self.show, "show")
        # A plan from files alone needs no models, and no packages for them.
        is_from_files = bool(self.acceptances) and self.costs is not None and not self.check
        if not is_from_files:
            self.models.check(refused=("none",))
        with progress() as report:
            plan = plan_pair(request, partial(self.models.load, report), progress=report)
        text = dumps(plan.as_json(), allow_nan=False)
        files.write_whole(self.out / "plan.json", lambda file: file.write(text + "\n"), mode="w")
        if self.json:
            print(text)
        else:
            # After a check the table compares, and has only rows with both figures.
            shown = plan.choices[: self.show]
            if self.check:
                shown = [choice for choice in plan.choices if choice.setting in plan.measured]
            print_table(_table(plan, shown), f"{self.out}/plan.json, costs.json")

    def _request(self) -> PlanRequest:
        dump = DumpRequest(
            folder=self.out / "dump" if self.dump is None else self.dump,
            model_names=dataclasses.asdict(self.models),
            sampling=self.sampling.sampling(),
            num_positions=self.num_positions,
            num_kept=self.num_kept,
            seed=self.seed,
        )
        return PlanRequest(
            folder=self.out,
            settings=self._settings(),
            dump=dump,
            is_given_dump=self.dump is not None,
            costs=self.costs,
            acceptances=self.acceptances,
            batch=self.batch,
            text_length=self.text_length,
            num_check_texts=self.check,
        )

    def _settings(self) -> list[planner.Setting]:
        """The settings to plan: every scheme with every shape that it supports."""
        if not self.acceptances:
            trees = [_parse_widths(text) for text in self.trees]
            return planner.settings(self.schemes, self.num_drafts, self.lengths, trees)
        # Measured acceptances belong to one scheme, and say nothing about other shapes.
        depth = len(self.acceptances)
        if len(self.schemes) != 1 or len(self.num_drafts) != 1:
            raise ValueError(
                "acceptances: expected one scheme and one number of drafts, those that they were "
                "measured with, such as --schemes gls --num-drafts 4, "
                f"got {len(self.schemes)} and {len(self.num_drafts)}"
            )
        if self.lengths != Plan.lengths or self.trees != Plan.trees:
            raise ValueError(
                "acceptances: expected neither --lengths nor --trees, "
                f"chains of every length up to {depth} are planned"
            )
        return planner.settings(self.schemes, self.num_drafts, range(1, depth + 1))


def _parse_widths(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"trees: expected numbers such as 4,2,1, got {text!r}")
    return tuple(int(number) for number in numbers)


def _table(plan: PairPlan, choices: list[planner.Choice]) -> Table:
    plain = f"plain generation {plan.plain_tokens_per_second:.4g} per second"
    table = Table(
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
        title=f"tokens per call of the target, and per second; {plain}",
    )
    names = ["scheme", "drafts", "per call", "±", "per second", "gain"]
    if plan.measured:
        names += ["measured", "±", "per second", "gain"]
    for name in names:
        table.add_column(name, justify="left" if name in ("scheme", "drafts") else "right")
    for choice in choices:
        setting = choice.setting
        drafts = f"{setting.num_drafts} x {setting.draft_length}"
        # A tree is written by its widths: 4-2-1.
        if setting.tree:
            drafts = "-".join(str(width) for width in setting.tree)
        row = [setting.scheme, drafts, *_format(choice)]
        if setting in plan.measured:
            row += _format(plan.measured[setting])
        table.add_row(*row)
    return table


def _format(figures: planner.Choice | planner.Measured) -> list[str]:
    # Acceptances that were given as numbers come without an error.
    error = figures.standard_error
    return [
        f"{figures.block_efficiency:.2f}",
        "" if math.isnan(error) else f"{error:.2f}",
        f"{figures.tokens_per_second:.3g}",
        f"{figures.speedup:.2f}",
    ]
