"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 7: acceptance of a token, measured
and computed.

The paper sets the measured chance that the target's token is among the K drafts beside the list
matching bound. Here the exact acceptance stands between them: all three at the places where rounds
of decoding begin, so that all K drafts are in play, on SmolLM2 drafted by itself without layers
12-17.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import shared
from experiments.block_efficiency import TOP_K, Setting, pair, prompts_of, start_run
from gls_jax import bounds, checks, models, schemes
from gls_jax.distributions import next_token_pairs

DROPPED = (12, 17)


class Row(NamedTuple):
    """Means over the places where rounds begin."""

    scheme: str
    num_drafts: int
    measured: float
    standard_error: float
    exact: float
    bound: float
    places: int


@dataclasses.dataclass(frozen=True)
class PerToken:
    """GLS paper, Table 7: acceptance of the first draft position, measured, exact and bound."""

    FULL: ClassVar[dict] = {"num_prompts": 50, "rounds": 20}

    scheme: tuple[str, ...] = ("gls",)
    """Schemes."""
    num_drafts: tuple[int, ...] = (2, 4, 8)
    """K, chains of one token."""
    num_prompts: int = 20
    """Prompts, at most 50."""
    rounds: int = 10
    """Rounds of each."""
    seed: int = 0
    """Seed of all runs."""
    out: Path = Path("results/per_token")
    """Folder for per_token.csv and per_token.png."""
    full: bool = False
    """50 prompts, 20 rounds."""

    def run(self, report: shared.Report) -> list:
        for name in ("num_prompts", "rounds"):
            checks.count(getattr(self, name), name)
        work = [
            (schemes.get(name), k)
            for name in self.scheme
            for k in checks.counts(self.num_drafts, "num_drafts")
        ]
        target, drafter = pair(DROPPED)
        prompts = prompts_of(target, self.num_prompts)
        kept = models.keep_layers(target.model, shared.others(DROPPED, target.config.num_layers))
        logits = [models.logits_function(model) for model in (target.model, kept)]
        rows = []
        for done, (scheme, k) in enumerate(work):
            report("schemes x K", done, len(work))
            setting = Setting("per token", scheme.name, k, length=1)
            hits, laws = places(target, drafter, prompts, logits, setting, self.rounds, self.seed)
            exact = shared.exact(scheme, *laws, [k])[:, 0]
            bound = shared.over_pairs(partial(bounds.list_matching, num_drafts=k), *laws)
            error = float(
                np.sqrt(np.mean(exact * (1 - exact)) / len(hits))
            )  # of the hits, the places being given
            rows.append(
                Row(
                    scheme.name,
                    k,
                    float(hits.mean()),
                    error,
                    float(exact.mean()),
                    float(bound.mean()),
                    len(hits),
                )
            )
        shared.write_csv(self.out / "per_token.csv", rows)
        title = f"SmolLM2, top {TOP_K}, {rows[0].places} to {rows[-1].places} places where a round begins"
        shared.save(self.out / "per_token.png", _figure(rows, title))
        return [
            shared.table(
                title, ("scheme", "K", "measured", "± s.e.", "exact", "bound", "places"), rows
            )
        ]


def places(target, drafter, prompts, logits, setting: Setting, rounds: int, seed: int):
    """At each place where a round began: whether a draft was accepted, and the laws `[M, N]` of
    draft and target.
    """
    keys = jax.vmap(lambda r: jax.random.fold_in(shared.root_key(seed), r))(np.arange(len(prompts)))
    run = start_run(target, drafter, prompts, keys, setting, 2 * rounds)
    texts, hits, begun = [list(prompt) for prompt in prompts], [], []
    for _ in range(rounds):
        begun.append([len(text) for text in texts])
        new = next(run)
        hits.append([len(tokens) > 1 for tokens in new])
        for text, tokens in zip(texts, new, strict=True):
            text += tokens.tolist()
    found = next_token_pairs(*logits, texts, num_positions=sum(map(len, texts)), top_k=TOP_K)
    first = np.cumsum([0, *map(len, texts)])[:-1]  # of each text among all positions
    where = np.concatenate(
        [first + np.array(lengths) - 1 for lengths in begun]
    )  # the law after the last token
    return np.concatenate(hits), (found.log_p[where], found.log_q[where])


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for at, name in enumerate(dict.fromkeys(row.scheme for row in rows)):
        own = [row for row in rows if row.scheme == name]
        counts = [row.num_drafts for row in own]
        axes.plot(counts, [row.exact for row in own], f"C{at}", label=f"{name}, exact")
        axes.plot(
            counts, [row.bound for row in own], f"C{at}:", label=f"{name}, list matching bound"
        )
        errors = [2 * row.standard_error for row in own]
        axes.errorbar(
            counts,
            [row.measured for row in own],
            errors,
            fmt=f"C{at}o",
            label=f"{name}, measured (± 2 s.e.)",
        )
    axes.set(xlabel="K", ylabel="acceptance of a token")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    return figure
