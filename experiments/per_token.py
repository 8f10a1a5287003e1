"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Table 7: acceptance of a token.

The paper compares the measured chance that the target's token is among the K drafts with the list
matching bound. Here the exact acceptance is computed as well. All three are taken at the positions
where rounds of decoding begin, so that all K drafts are in play, on SmolLM2 drafted by itself
without layers 12-17.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments import decoding_runs, output, shared
from experiments.decoding_runs import Setting
from experiments.output import column, distinct, select
from gls_jax import bounds, checks, distributions, models, schemes
from gls_jax.distributions import pairs
from gls_jax.exact import batched
from gls_jax.typing import Report

# First and last of the layers that the drafter leaves out.
DROPPED = (12, 17)


class Row(NamedTuple):
    """Means over the positions where rounds begin."""

    scheme: str
    num_drafts: int
    measured: float
    standard_error: float
    exact: float
    bound: float
    num_positions: int


class Rounds(NamedTuple):
    """What some rounds of decoding did.

    Attributes:
        accepted: whether a draft was accepted, `bool[M]`, rounds times requests.
        lengths: of the texts where each round begins, `i64[rounds, requests]`.
        texts: prompts and all that was emitted.
    """

    accepted: np.ndarray
    lengths: np.ndarray
    texts: list[list[int]]


@dataclasses.dataclass(frozen=True)
class PerToken:
    """GLS paper, Table 7: acceptance of the first draft position, measured, exact and bound.

    Attributes:
        scheme: Schemes.
        num_drafts: K, chains of one token.
        num_prompts: Prompts, at most 50.
        rounds: Rounds of each.
        seed: Seed of all runs.
        out: Folder for per_token.csv and per_token.png.
        full: 50 prompts, 20 rounds.
    """

    FULL: ClassVar[dict] = {"num_prompts": 50, "rounds": 20}

    scheme: tuple[str, ...] = ("gls",)
    num_drafts: tuple[int, ...] = (2, 4, 8)
    num_prompts: int = 20
    rounds: int = 10
    seed: int = 0
    out: Path = Path("results/per_token")
    full: bool = False

    def run(self, report: Report) -> list:
        shared.check_counts(self, "num_prompts", "rounds")
        counts = checks.counts(self.num_drafts, "num_drafts")
        work = [(schemes.get(name), k) for name in self.scheme for k in counts]
        target, drafter = decoding_runs.load_pair(DROPPED)
        prompts = decoding_runs.question_prompts(target, self.num_prompts)
        # Both models as compiled functions of a text, for all settings.
        kept_layers = shared.remaining_layers(DROPPED, target.config.num_layers)
        kept_model = models.keep_layers(target.model, kept_layers)
        logits_functions = [models.logits_function(model) for model in (target.model, kept_model)]
        rows = []
        for num_done, (scheme, k) in enumerate(work):
            report("schemes x K", num_done, len(work))
            # Chains of one token: a round proposes K tokens at one position.
            setting = Setting("per token", scheme.name, num_drafts=k, length=1)
            rounds = self._decode(target, drafter, prompts, setting)
            rows.append(_row(scheme, k, rounds.accepted, *_pairs_at(rounds, *logits_functions)))
        positions_text = (
            f"{rows[0].num_positions} to {rows[-1].num_positions} positions where a round begins"
        )
        title = f"SmolLM2, top {decoding_runs.TOP_K}, {positions_text}"
        output.save_results(self.out, "per_token", rows, _figure(rows, title))
        header = ("scheme", "K", "measured", "± s.e.", "exact", "bound", "positions")
        return [output.table(title, header, rows)]

    def _decode(self, target, drafter, prompts: list[list[int]], setting: Setting) -> Rounds:
        request_keys = decoding_runs.request_keys(self.seed, len(prompts))
        # A round of one draft emits at most two tokens, so that no request ends early.
        run = decoding_runs.start_run(
            target, drafter, prompts, request_keys, setting, 2 * self.rounds
        )
        texts = [list(prompt) for prompt in prompts]
        accepted = []
        lengths = []
        for _ in range(self.rounds):
            lengths.append([len(text) for text in texts])
            new_tokens = next(run)
            # One token is the target's own; a second one was drafted.
            accepted.append([len(tokens) > 1 for tokens in new_tokens])
            for text, tokens in zip(texts, new_tokens, strict=True):
                text += tokens.tolist()
        return Rounds(np.concatenate(accepted), np.array(lengths), texts)


def _pairs_at(rounds: Rounds, target_logits, draft_logits) -> pairs.Pairs:
    """Log-probabilities of drafter and target where each round begins, `[M, N]`."""
    text_lengths = [len(text) for text in rounds.texts]
    # Every position of the finished texts, one text after the other.
    log_p, log_q = distributions.next_token_pairs(
        target_logits,
        draft_logits,
        rounds.texts,
        num_positions=sum(text_lengths),
        top_k=decoding_runs.TOP_K,
    )
    # The next token is drawn from the distribution after the last one that a text had.
    first_positions = np.cumsum([0, *text_lengths[:-1]])
    positions = (first_positions + rounds.lengths - 1).reshape(-1)
    return pairs.Pairs(log_p[positions], log_q[positions])


def _row(scheme: schemes.Scheme, num_drafts: int, accepted: np.ndarray, log_p, log_q) -> Row:
    exact = batched.acceptance_curves(scheme, log_p, log_q, [num_drafts])[:, 0]
    bound = batched.over_pairs(bounds.list_matching, log_p, log_q, static=(num_drafts,))
    # Of the mean of `accepted`, given the positions: a sum of Bernoulli variances.
    mean_variance = np.mean(exact * (1 - exact)) / len(accepted)
    return Row(
        scheme=scheme.name,
        num_drafts=num_drafts,
        measured=float(accepted.mean()),
        standard_error=float(np.sqrt(mean_variance)),
        exact=float(exact.mean()),
        bound=float(bound.mean()),
        num_positions=len(accepted),
    )


def _figure(rows: list[Row], title: str) -> Figure:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    for color_index, scheme in enumerate(distinct(rows, "scheme")):
        scheme_rows = select(rows, scheme=scheme)
        num_drafts = column(scheme_rows, "num_drafts")
        color = f"C{color_index}"
        axes.plot(num_drafts, column(scheme_rows, "exact"), color, label=f"{scheme}, exact")
        bound_label = f"{scheme}, list matching bound"
        axes.plot(num_drafts, column(scheme_rows, "bound"), f"{color}:", label=bound_label)
        axes.errorbar(
            num_drafts,
            column(scheme_rows, "measured"),
            2 * np.array(column(scheme_rows, "standard_error")),
            fmt=f"{color}o",
            label=f"{scheme}, measured (± 2 s.e.)",
        )
    axes.set(xlabel="K", ylabel="acceptance of a token")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
    return figure
