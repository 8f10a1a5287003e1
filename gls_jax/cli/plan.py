"""`gls-jax plan`."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import ClassVar

from rich import box
from rich.console import Console
from rich.table import Table

from gls_jax.cli import loading
from gls_jax.cli.console import progress
from gls_jax.cli.dump import DumpLaws
from gls_jax.cli.pair import Pair

__all__ = ["Plan"]


@dataclasses.dataclass(frozen=True)
class Plan(Pair):
    """Which scheme, how many drafts, how long: block efficiency and token rate of every choice for
    a pair of models.
    """

    out: Path = Path("results/plan")
    """Folder for costs.json and plan.json."""
    dump: Path | None = None
    """Laws along texts (gls-jax dump), made if missing. Default: the folder `dump` in --out."""
    costs: Path | None = None
    """Measured costs, such as another machine's costs.json. Default: those in --out, measured if
    missing.
    """
    acceptances: tuple[float, ...] = ()
    """In place of a dump: measured acceptances of the 1st, 2nd, ... draft, each given those before
    it; chains of every length up to their number are planned.
    """
    schemes: tuple[str, ...] = (
        "single",
        "block",
        "gls",
        "gls_strong",
        "poisson",
        "gumbel_topk",
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
    num_positions: int = 4096
    """Positions of a dump that is made."""
    batch: int = 1
    """Requests decoded together, for the costs."""
    text_length: int = 256
    """Tokens of a text, prompt included, for the costs."""
    check: int = 0
    """Generate so many texts with the best choice of each scheme: measured beside predicted."""
    show: int = 12
    """Rows of the table; plan.json has all."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Dump, measure, predict, print."""
        from gls_jax import checks, decoding, distributions, planner
        from gls_jax.runs import files

        lengths = range(1, len(self.acceptances) + 1) if self.acceptances else self.lengths
        trees = () if self.acceptances else [_widths(text) for text in self.trees]
        if self.acceptances and (len(self.schemes), len(self.num_drafts)) != (1, 1):
            raise ValueError(
                "acceptances: expected the one scheme and number of drafts that they are of, such as --schemes gls "
                f"--num-drafts 4, got {len(self.schemes)} and {len(self.num_drafts)}"
            )
        if self.acceptances and (self.lengths, self.trees) != (Plan.lengths, Plan.trees):
            raise ValueError(
                "acceptances: expected neither --lengths nor --trees, chains of every length up to "
                f"{len(self.acceptances)} are planned"
            )
        asked = planner.settings(self.schemes, self.num_drafts, list(lengths), trees)
        planner.check_acceptances(self.acceptances)
        dumping = self._dumping()
        dumping.check()
        checks.count(self.show, "show")
        if self.check < 0 or self.check % checks.count(self.batch, "batch"):
            raise ValueError(
                f"check: expected a multiple of batch ({self.batch}), got {self.check}"
            )
        files.check_folder(self.out)
        path = self.out / "costs.json" if self.costs is None else self.costs
        costs = self._known_costs(path, asked)
        dump = (
            distributions.open_dump(dumping.out)
            if not self.acceptances and (dumping.out / "dump.json").exists()
            else None
        )
        if dump is not None:
            own = {} if self.dump is not None else self._own(dump)
            _same(
                dumping.out,
                dump.configuration,
                self.models | {"sampling": dataclasses.asdict(dumping.sampling())} | own,
            )
        if dump is not None and not dump.finished:
            dump = None
        with progress() as report:
            if costs is None or self.check or (dump is None and not self.acceptances):
                source, drafter = loading.load(self.target, self.draft, self.drop_layers, report)
            self.out.mkdir(parents=True, exist_ok=True)
            if dump is None and not self.acceptances:
                dump = dumping.make(source, drafter, report)
            if costs is None:
                costs = planner.measure(
                    source.language_model,
                    drafter,  # type: ignore[arg-type]  # not None: `dumping.check` has seen to that
                    self.schemes,
                    [setting.shape for setting in asked],
                    batch=self.batch,
                    text_length=self.text_length,
                    sampling=decoding.DecodeOptions(**self._sampling()),
                    metadata=self._facts(),
                    progress=lambda done, total: report("costs", done, total),
                )
                costs.save(path)
            if dump is None:
                choices = planner.from_acceptances(self.acceptances, asked, costs)
            else:
                choices = planner.plan(
                    dump, asked, costs, progress=lambda *done: report("settings", *done)
                )
            length = (
                DumpLaws.length
                if dump is None
                else dump.configuration.get("length", DumpLaws.length)
            )
            measured = self._check(choices, source, drafter, length, report) if self.check else {}
        self._show(choices, measured, costs)

    def _own(self, dump) -> dict:
        """What a dump in --out was asked; one that cut nothing off serves whoever would keep more."""
        kept, cut = (
            dump.configuration["num_kept"],
            dump.rows.tail_p.any() or dump.rows.tail_q.any(),
        )
        num_kept = self.num_kept if cut else min(self.num_kept, kept)
        return {"seed": self.seed, "positions": self.num_positions, "num_kept": num_kept}

    def _known_costs(self, path: Path, asked):
        """Those of a file, or None where they must be measured."""
        from gls_jax import planner

        if self.costs is None and not path.exists():
            return None
        costs = planner.Costs.load(path)
        sizes = [(setting.scheme, setting.shape) for setting in asked]
        if self.costs is None:
            _same(path, costs.metadata, self._facts())
            try:
                costs.check(sizes)
            except ValueError:
                return None  # measured before, for fewer schemes or smaller shapes
        costs.check(sizes)
        if costs.batch != self.batch:
            raise ValueError(
                f"{path}: expected costs of batch {self.batch}, got batch {costs.batch}"
            )
        return costs

    def _facts(self) -> dict:
        import jax

        device = jax.devices()[0].device_kind
        sizes = {"batch": self.batch, "text_length": self.text_length, "device": device}
        return self.models | {"sampling": self._sampling()} | sizes

    def _show(self, choices, measured, costs) -> None:
        from gls_jax.runs import files

        records = [
            _known(each)
            | {"setting": each.setting._asdict()}
            | ({"measured": _known(measured[each.setting])} if each.setting in measured else {})
            for each in choices
        ]
        plain = costs.batch / costs.plain()
        result = {
            "target": self.target,
            "draft": self.draft,
            "plain_tokens_per_second": plain,
            "choices": records,
        }
        text = json.dumps(result, allow_nan=False)
        files.write_whole(self.out / "plan.json", lambda file: file.write(text + "\n"), mode="w")
        if self.json:
            print(text)
        else:
            shown = (
                [each for each in choices if each.setting in measured]
                if self.check
                else choices[: self.show]
            )
            _print(shown, measured, costs, self.out)

    def _check(self, choices, source, drafter, length: int, report) -> dict:
        """The best choice of each scheme, measured on texts as long as the dump's."""
        import jax

        from gls_jax import decoding, planner, races
        from gls_jax.distributions import prompts

        best = {choice.setting.scheme: choice.setting for choice in reversed(choices)}
        root = races.private_key(
            races.new_key(self.seed)
        )  # the dump's texts have the other folds of this seed
        keys = jax.vmap(lambda r: jax.random.fold_in(root, r))(jax.numpy.arange(self.check))
        found = {}
        for done, setting in enumerate(best.values()):
            report("check", done, len(best))
            found[setting] = planner.measure_generation(
                keys,
                source.language_model,
                drafter,
                [source.tokenizer.encode(text).ids for text in prompts.PROMPTS],
                setting,
                batch=self.batch,
                options=decoding.DecodeOptions(
                    max_new_tokens=length,
                    stop_tokens=source.config.eos_token_ids,
                    **self._sampling(),
                ),
            )
        return found

    def _dumping(self) -> DumpLaws:
        same = {field.name: getattr(self, field.name) for field in dataclasses.fields(Pair)}
        out = self.out / "dump" if self.dump is None else self.dump
        return DumpLaws(**same, out=out, num_positions=self.num_positions, resume=True)

    def _sampling(self) -> dict:
        return {
            "temperature": self.temperature,
            "draft_temperatures": self.draft_temperature,
            "top_k": self.top_k or None,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }


def _same(path: Path, found: dict, asked: dict) -> None:
    for name, value in asked.items():
        if found.get(name) != value:
            raise ValueError(
                f"{path}: expected {name} {value}, got one made with {found.get(name)}; give another --out"
            )


def _known(figures) -> dict:
    """The fields of a result; NaN, which JSON does not know, is None."""

    def number(value):
        if isinstance(value, tuple):
            return [number(each) for each in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return {name: number(value) for name, value in figures._asdict().items()}


def _widths(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise ValueError(f"trees: expected numbers such as 4,2,1, got {text!r}")
    return tuple(map(int, text.split(",")))


def _print(choices, measured, costs, out: Path) -> None:
    plain = f"plain generation {costs.batch / costs.plain():.4g} a second"
    table = Table(
        box=box.SIMPLE,
        collapse_padding=True,
        pad_edge=False,
        title=f"tokens a call of the target, and a second; {plain}",
    )
    names = ["scheme", "drafts", "a call", "±", "a second", "gain"]
    for name in names + ["measured", "±", "a second", "gain"] * bool(measured):
        table.add_column(name, justify="left" if name in ("scheme", "drafts") else "right")
    for each in choices:
        setting = each.setting
        chains = f"{setting.num_drafts} x {setting.draft_length}"
        cells = [
            setting.scheme,
            "-".join(map(str, setting.tree)) if setting.tree else chains,
            f"{each.block_efficiency:.2f}",
            "" if math.isnan(each.standard_error) else f"{each.standard_error:.2f}",
            f"{each.tokens_per_second:.3g}",
            f"{each.speedup:.2f}",
        ]
        if found := measured.get(setting):
            cells += [f"{found.block_efficiency:.2f}", f"{found.standard_error:.2f}"]
            cells += [f"{found.tokens_per_second:.3g}", f"{found.speedup:.2f}"]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    console.print(f"{out}/plan.json, costs.json", highlight=False)
