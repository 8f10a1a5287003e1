"""`gls-jax generate`."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from gls_jax import schemes
from gls_jax.cli.console import ERR, print_json, progress
from gls_jax.cli.distributed import SINGLE_PROCESS, Distributed
from gls_jax.cli.option_groups import DEFAULT_MODELS, ModelNames, top_k_or_all
from gls_jax.decoding import BestFirstTree, DecodeOptions, MarginTree, requests
from gls_jax.decoding.tree_shape import DynamicTree

__all__ = ["Generate"]

# Options that a result depends on and that are not part of a request; its hash includes them.
_HASHED_OPTIONS = (
    "scheme",
    "drafts",
    "length",
    "tree",
    "draft_temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)
_DEFAULT_TEXT = requests.TextOptions()


@dataclasses.dataclass(frozen=True)
class Generate:
    """Generate text by speculative decoding, with the distribution of the target model.

    Prints the text and how many drafts were accepted.
    """

    models: tyro.conf.OmitArgPrefixes[ModelNames] = DEFAULT_MODELS
    """Default: --draft auto, for a strongly invariant scheme. If an option says how to draft, or
    for another scheme: --draft trained for smollm2, else the target without --drop-layers.
    """
    scheme: str = "gumbel_topk"
    """How drafts are proposed and verified: one of gls_jax.schemes.NAMES and PATH_NAMES."""
    drafts: int | None = None
    """Number of chains, K. Default: one for each draft temperature, else 4, or as many as the
    scheme takes; 1 for ngram, which has one guess, and for auto.
    """
    length: int | None = None
    """Drafts in a chain. Default: 4; `auto` chooses it."""
    tree: str | None = None
    """In place of chains: children at each depth, such as `4,2,1`; or `margin`,
    `margin:BUDGET,DEPTH`, for the scheme gumbel_topk; or `best-first`, `best-first:BUDGET,DEPTH`,
    for the scheme topk.
    """
    temperature: float = 1.0
    """Temperature of the target; 0 is greedy."""
    draft_temperature: tuple[float, ...] | None = None
    """Temperature of the drafter, one or K. Default: that of the target; 1 for topk if that is
    0.
    """
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the most probable tokens up to this total probability."""
    min_p: float | None = None
    """Keep tokens with at least this share of the largest probability."""
    repetition_penalty: float | None = None
    """Above 1: tokens that are already in the text become less probable."""
    max_new_tokens: int = 128
    """Longest reply, in tokens."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A prompt; may be given several times."""
    prompts: Path | None = None
    """Or a file with one JSON object per line: `prompt`, `messages`, or `turns` of a user, of which
    the first is answered; optionally `max_new_tokens`, `temperature`, `seed`.
    """
    batch: int = 8
    """Requests in one batch. Results do not depend on it, unless drafting is automatic and the
    scheme not strongly invariant.
    """
    text: tyro.conf.OmitArgPrefixes[requests.TextOptions] = _DEFAULT_TEXT
    out: Path | None = None
    """A file to which each finished result is appended at once, one JSON object per line."""
    resume: bool = False
    """Continue the --out file: finished requests are not generated again."""
    json: bool = False
    """Print one JSON object for each request and one for the summary, instead of text."""
    timed: bool = False
    """Measure drafting, verification and selection separately, which costs some speed."""
    processes: tyro.conf.OmitArgPrefixes[Distributed] = SINGLE_PROCESS

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run leaves results that can be resumed."""
        return self.out is not None

    def run(self) -> None:
        """Generate, show the text as it comes, then print the figures of the run."""
        if self.processes.is_requested and self.out is None:
            raise ValueError("out: expected a file for the results of all processes, got none")
        if self.resume and self.out is None:
            raise ValueError("resume: expected --out with the file to continue, got none")
        with self.processes.joined_cluster() as is_primary:
            # Everything is checked before models are loaded.
            text_requests = self._requests()
            names = self._model_names()
            options = self._decode_options()
            requests.check_options(
                options,
                has_drafter=names.draft != "none",
                is_automatic=names.is_automatic,
            )
            names.check()

            # The text of a single request is shown while it grows.
            is_streamed = len(text_requests) == 1 and not self.json
            with ExitStack() as bars:
                report = bars.enter_context(progress(is_primary))

                def show(piece: str) -> None:
                    # A visible bar would capture the text as its own output.
                    bars.close()
                    _write(piece)

                answers = requests.answer(
                    text_requests,
                    partial(names.load, report),
                    options,
                    self.text,
                    configuration=self._configuration(),
                    batch_size=self.batch,
                    path=self.out,
                    resume=self.resume,
                    timed=self.timed,
                    on_text=show if is_streamed else None,
                    progress=report,
                )
            if is_primary:
                self._print(answers, is_streamed and answers.share_size > 0)
            if answers.problem is not None:
                raise ValueError(answers.problem)

    def _requests(self) -> list[requests.TextRequest]:
        if self.prompt and self.prompts is not None:
            raise ValueError("prompt: expected --prompt or --prompts, got both")
        limits: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }
        if self.prompts is not None:
            return requests.read_requests(self.prompts, **limits)
        if not self.prompt:
            raise ValueError("prompt: expected --prompt or --prompts, got none")
        return requests.requests_from_prompts(self.prompt, **limits)

    def _model_names(self) -> ModelNames:
        """The models; if nothing is said about drafting, it is automatic."""
        if self.models.draft is not None or self.models.drop_layers is not None:
            return self.models
        shape_options = (self.drafts, self.length, self.tree, self.draft_temperature)
        is_free = not self.timed and all(option is None for option in shape_options)
        # The texts of other schemes would depend on their batch, and on measured costs.
        if is_free and schemes.get(self.scheme).invariance == "strong":
            return dataclasses.replace(self.models, draft="auto")
        return self.models.with_trained_drafter()

    def _decode_options(self) -> DecodeOptions:
        has_chain_options = self.drafts is not None or self.length is not None
        if self.tree is not None and has_chain_options:
            raise ValueError(
                "tree: expected --tree, or --drafts and --length, got --tree combined with "
                f"{'--drafts' if self.drafts is not None else '--length'}"
            )
        names = self._model_names()
        if names.is_automatic and self.length is not None:
            raise ValueError("length: expected none with --draft auto, which chooses it")
        if names.is_automatic and self.timed:
            raise ValueError("timed: expected no --timed with --draft auto")
        scheme = schemes.get(self.scheme)
        temperatures = self.draft_temperature or ()
        # Look-up of n-grams has one guess; other drafters follow their temperatures.
        num_drafts = self.drafts
        has_one_guess = names.draft == "ngram" or names.is_automatic
        if num_drafts is None and has_one_guess:
            num_drafts = 1
        elif num_drafts is None:
            num_drafts = len(temperatures) if len(temperatures) > 1 else 4
            num_drafts = min(num_drafts, scheme.max_drafts or num_drafts)
        return DecodeOptions(
            scheme=scheme,
            num_drafts=num_drafts,
            draft_length=4 if self.length is None else self.length,
            tree=_parse_tree(self.tree),
            temperature=self.temperature,
            draft_temperatures=temperatures[0] if len(temperatures) == 1 else temperatures or None,
            top_k=top_k_or_all(self.top_k),
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )

    def _configuration(self) -> dict[str, Any]:
        configuration = dataclasses.asdict(self._model_names()) | dataclasses.asdict(self.text)
        # The hash of a request contains its seed, or this one with the number of the request.
        del configuration["seed"]
        for name in _HASHED_OPTIONS:
            configuration[name] = getattr(self, name)
        return configuration

    def _print(self, answers: requests.Answers, is_text_shown: bool) -> None:
        # The text that was shown ends without a newline.
        if is_text_shown:
            print(flush=True)
        records = answers.records
        if not records:
            return
        figures = answers.summary()
        if self.json:
            for record in records:
                print_json(record, ensure_ascii=False)
            print_json({"summary": figures})
            return
        if not is_text_shown:
            for record in records:
                if len(records) > 1:
                    print(f"--- {record['request']}")
                print(record["text"])
        # On stderr, so that stdout can go into a file or another program.
        ERR.print(_summary_table(figures, f"{self.models.target}, {self.scheme}"))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


_DYNAMIC_TREES: dict[str, type[DynamicTree]] = {"margin": MarginTree, "best-first": BestFirstTree}


def _parse_tree(text: str | None) -> list[int] | DynamicTree | None:
    """A tree such as `4,2,1`, `margin`, `margin:32,4` or `best-first:32,4`."""
    if text is None:
        return None
    if text in _DYNAMIC_TREES:
        return _DYNAMIC_TREES[text]()
    kind, is_dynamic, sizes = text.rpartition(":")
    # A dynamic tree has a budget and a depth, a static tree one width for each depth.
    numbers = sizes.split(",")
    has_kind = kind in _DYNAMIC_TREES and len(numbers) == 2 if is_dynamic else True
    if not has_kind or not all(number.isdecimal() for number in numbers):
        raise ValueError(
            "tree: expected numbers such as 4,2,1, or margin or best-first, alone or followed by "
            f":BUDGET,DEPTH, got {text!r}"
        )
    widths = [int(number) for number in numbers]
    return _DYNAMIC_TREES[kind](*widths) if is_dynamic else widths


def _summary_table(figures: dict[str, Any], title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("requests, ended by a stop", f"{figures['requests']}, {figures['stopped']}")
    table.add_row("tokens", str(figures["tokens"]))
    calls = f"{figures['target_calls']}, {figures['draft_calls']}"
    table.add_row("target calls, draft calls", calls)
    efficiency = _format(figures["block_efficiency"])
    table.add_row("mean acceptance length (block efficiency)", efficiency)
    if figures["acceptance_by_position"]:
        # Up to the most drafts that a round accepted: automatic drafting may try many.
        histogram = figures["acceptance_histogram"]
        most = max(number for number, share in enumerate(histogram) if share or not number)
        shares = enumerate(histogram[: most + 1])
        table.add_row("acceptance histogram", "  ".join(f"{n} {share:.0%}" for n, share in shares))
        by_position = figures["acceptance_by_position"][: most + 1]
        positions = [_format(chance) for chance in by_position]
        table.add_row("acceptance by position", "  ".join(positions))
    table.add_row("prompts, compilation, first tokens", f"{figures['warm_up_seconds']:.1f} s")
    table.add_row("tokens per second after that", _format(figures["tokens_per_second"]))
    for part, seconds in figures.get("parts", {}).items():
        share = seconds / max(figures["seconds"], 1e-9)
        # Indented: a part of the time above.
        table.add_row(f"  {part}", f"{seconds:.2f} s, {share:.0%}")
    return table


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
