"""`gls-jax generate`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from gls_jax.cli import loading, requests
from gls_jax.cli.console import ERR, progress
from gls_jax.cli.distributed import ALONE, Distributed
from gls_jax.cli.reply import Reply, Stops, stops
from gls_jax.cli.requests import Request
from gls_jax.cli.serve import Clock, serve
from gls_jax.cli.summary import summary, table
from gls_jax.runs.jsonl_results import Journal

if TYPE_CHECKING:
    from gls_jax.decoding import DecodeOptions

__all__ = ["Generate"]

# What a result does not depend on, or what its request holds.
_ELSEWHERE = (
    "prompt",
    "prompts",
    "max_new_tokens",
    "temperature",
    "seed",
    "batch",
    "out",
    "resume",
    "json",
    "timed",
    "processes",
)
_VOCABULARY = 2**31 - 1  # of the model that is not there


@dataclasses.dataclass(frozen=True)
class Generate:
    """Text of a language model by speculative decoding, and how well the drafts did; the law is the
    target's alone.
    """

    target: str = "smollm2"
    """`smollm2`, a Hugging Face folder or a .gguf file."""
    draft: str | None = None
    """The drafter, likewise; `ngram` looks drafts up in the text, `none` generates without.
    Default: the target without --drop-layers.
    """
    drop_layers: str | None = None
    """Layers the drafter leaves out, such as `12-17` or `3,7-9`; empty for none. Default: the
    middle fifth of the target's (`12-17` of smollm2), none of another drafter's.
    """
    scheme: str = "gumbel_topk"
    """Who accepts drafts, one of gls_jax.schemes.NAMES and PATH_NAMES."""
    drafts: int | None = None
    """Chains K. Default: one a draft temperature, else 4, or as many as the scheme takes; 1 for
    ngram, which has one guess.
    """
    length: int | None = None
    """Drafts in a chain. Default: 4."""
    tree: str | None = None
    """In place of chains: children at each depth, such as `4,2,1`; or `margin`,
    `margin:BUDGET,DEPTH`.
    """
    temperature: float = 1.0
    """Of the target; 0 is greedy."""
    draft_temperature: tuple[float, ...] | None = None
    """Of the drafter, one or K. Default: the target's."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this mass."""
    min_p: float | None = None
    """Keep tokens of at least this share of the likeliest one's probability."""
    repetition_penalty: float | None = None
    """Makes tokens of the text less likely (above 1)."""
    max_new_tokens: int = 128
    """Longest reply."""
    seed: int = 0
    """Of all requests without a seed of their own, folded with their number."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A prompt; may be given several times."""
    prompts: Path | None = None
    """Or a file, one JSON object a line: `prompt` or `messages`; optional `max_new_tokens`,
    `temperature`, `seed`.
    """
    batch: int = 8
    """Requests in one batch; results do not depend on it."""
    chat: bool = True
    """Whether prompts go through the model's chat template, where it has one."""
    system: str | None = None
    """The system message of chats that have none."""
    stop: tuple[str, ...] = ()
    """What ends a reply beside the model's own stop tokens: texts, or token ids."""
    out: Path | None = None
    """A file to which each finished result is appended at once, one JSON object a line."""
    resume: bool = False
    """Go on with that file: what is done is not done again."""
    json: bool = False
    """Print one JSON object a request and one for the summary instead of text."""
    timed: bool = False
    """Measure drafting, verification and selection apart, which costs some speed."""
    processes: tyro.conf.OmitArgPrefixes[Distributed] = ALONE

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run left something to go on with."""
        return self.out is not None

    def run(self) -> None:
        """Generate, show the text as it comes, say how it went."""
        if self.processes.asked and self.out is None:
            raise ValueError("out: expected a file for the results of all processes, got none")
        with self.processes.joined() as speaks:
            self._run(speaks)

    def _run(self, speaks: bool) -> None:
        from gls_jax.runs import files

        asked = self._requests()
        options = (
            self._options()
        )  # all that can be said to be wrong is said before models are loaded
        loading.check(self.draft, self.drop_layers)
        if self.out is None:
            self._answer(asked, options, speaks)
            return
        files.check_folder(self.out.parent)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with files.alone(self.out) if speaks else nullcontext():
            self._answer(asked, options, speaks)

    def _answer(self, asked: list[Request], options: DecodeOptions, speaks: bool) -> None:
        from gls_jax.runs import cluster

        asks = {request.number: self._fingerprint(request) for request in asked}
        journal = Journal(
            self.out, self.resume, asks, cluster.index() if self.processes.asked else None
        )
        # All have read what there is before one of them writes.
        cluster.barrier(
            hashlib.sha256(json.dumps([asks, sorted(journal.done)]).encode()).hexdigest()
        )
        left, known = (
            [request for request in asked if request.number not in journal.done],
            len(journal.done),
        )
        todo = [left[i] for i in cluster.shard(len(left))]
        streams, clock = len(asked) == 1 and bool(todo) and not self.json, Clock()
        if todo:
            with progress(speaks) as report:
                target, drafter = loading.load(self.target, self.draft, self.drop_layers, report)
                replies = self._replies(todo, target)
            # The bar would take the text for its own.
            with nullcontext(lambda *_: None) if streams else progress(speaks) as report:

                def finished(record: dict[str, Any]) -> None:
                    journal.append(record)
                    report("requests", len(journal.done), known + len(todo))

                report("requests", known, known + len(todo))
                show = _write if streams else lambda piece: None
                serve(
                    target.language_model,
                    drafter,
                    replies,
                    self.batch,
                    clock,
                    show,
                    finished,
                    options,
                    self.timed,
                )
        cluster.barrier()
        if speaks:
            journal.merge()
            self._show(
                [journal.done[r.number] for r in asked if r.number in journal.done], clock, streams
            )
        if broken := [request.where for request in todo if request.number not in journal.done]:
            raise ValueError(
                f"{', '.join(broken)}: expected logits with a largest one, got NaN or infinite ones"
            )
        if speaks and (
            missing := [request.where for request in asked if request.number not in journal.done]
        ):
            raise ValueError(
                f"{', '.join(missing)}: expected in the parts of the other processes, got none; see what they say, and "
                f"where hosts share no folder bring all {self.out}.part* into one and --resume there"
            )

    def _requests(self) -> list[Request]:
        common = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        if bool(self.prompt) == (self.prompts is not None):
            raise ValueError(
                "prompt: expected --prompt or --prompts, got " + ("both" if self.prompt else "none")
            )
        if self.prompts is None:
            return requests.from_prompts(self.prompt, **common)
        return requests.read(self.prompts, **common)

    def _options(self) -> DecodeOptions:
        """Options of :func:`gls_jax.decoding.stream`, tried on a model that is not there."""

        from gls_jax import checks, decoding, races, schemes
        from gls_jax.decoding import preparation

        requests.check_seed(self.seed)
        checks.count(self.batch, "batch")
        if self.resume and self.out is None:
            raise ValueError("resume: expected --out with the file to go on with, got none")
        if self.system is not None and not self.chat:
            raise ValueError("system: expected a chat for a system message, got --no-chat")
        if "" in self.stop:
            raise ValueError("stop: expected texts or token ids, got an empty text")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected 0 (all) or more, got {self.top_k}")
        if self.tree is not None and (self.drafts is not None or self.length is not None):
            raise ValueError("tree: expected no --drafts and no --length beside a tree, got one")
        scheme = schemes.get(self.scheme)
        if scheme.verify_limit(_VOCABULARY, 1):
            raise ValueError(
                f"scheme: expected one for the vocabulary of a language model, got '{scheme.name}'"
            )
        drafts = self.drafts
        if drafts is None:
            drafts = (
                len(self.draft_temperature or ()) if len(self.draft_temperature or ()) > 1 else 4
            )
            drafts = 1 if self.draft == "ngram" else min(drafts, scheme.max_drafts or drafts)
        options = decoding.DecodeOptions(
            scheme=scheme,
            num_drafts=drafts,
            draft_length=4 if self.length is None else self.length,
            tree=_tree(self.tree),
            temperature=self.temperature,
            draft_temperatures=_one_or_all(self.draft_temperature),
            top_k=self.top_k or None,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )
        absent = decoding.from_function(len, (), _VOCABULARY)  # type: ignore[arg-type]  # never called
        drafter = None if self.draft == "none" else absent
        preparation.prepare(races.new_key(0), absent, drafter, [[0]], None, options)
        return options

    def _replies(self, asked: list[Request], target) -> list[Reply]:
        from gls_jax import models, races

        template = models.chat_template(self.target) if self.chat else None
        if template is None and self.system is not None:
            raise ValueError(
                f"{self.target}: expected a chat template for a system message, got none"
            )
        own = list(target.config.eos_token_ids)
        if template is not None and (end := template.end_of_turn(target.tokenizer)) is not None:
            own.append(end)
        ends = stops(self.stop, own, target.tokenizer)
        return [
            self._reply(request, target, template, ends, races.new_key(self.seed))
            for request in asked
        ]

    def _reply(self, request: Request, target, template, ends: Stops, key) -> Reply:
        import jax

        from gls_jax import models, races

        prompt = requests.encode(request, target.tokenizer, template, self.system)
        if (room := target.config.max_positions - len(prompt)) < 1:
            raise ValueError(
                f"{request.where}: expected fewer tokens than the model's context of {target.config.max_positions}, "
                f"got {len(prompt)}"
            )
        key = (
            jax.random.fold_in(key, request.number)
            if request.seed is None
            else races.new_key(request.seed)
        )
        detokenizer = models.Detokenizer(
            target.tokenizer, () if template else prompt
        )  # a chat's reply stands alone
        return Reply(request, prompt, key, min(request.max_new_tokens, room), ends, detokenizer)

    def _fingerprint(self, request: Request) -> str:
        """Of all that a result depends on."""
        options = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _ELSEWHERE
        }
        one = dataclasses.asdict(request)
        del one["where"]
        one["seed"] = [self.seed, request.number] if request.seed is None else request.seed
        return hashlib.sha256(json.dumps([options, one], sort_keys=True).encode()).hexdigest()[:16]

    def _show(self, records: list[dict[str, Any]], clock: Clock, streamed: bool) -> None:
        if streamed:
            print(flush=True)
        if not records:
            return
        figures = summary(records, clock)
        if self.json:
            for record in records:
                print(json.dumps(record, ensure_ascii=False))
            print(json.dumps({"summary": figures}))
            return
        if not streamed:
            for record in records:
                print((f"--- {record['request']}\n" if len(records) > 1 else "") + record["text"])
        ERR.print(table(figures, f"{self.target}, {self.scheme}"))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _tree(text: str | None):
    """`4,2,1` or `margin:32,4`."""
    from gls_jax import decoding

    if text is None:
        return None
    kind, _, numbers = text.rpartition(":") if ":" in text else ("", "", text)
    if text == "margin":
        return decoding.MarginTree()
    sizes = numbers.split(",")
    if (
        kind not in ("", "margin")
        or not all(size.isdecimal() for size in sizes)
        or (kind and len(sizes) != 2)
    ):
        raise ValueError(
            f"tree: expected numbers such as 4,2,1, or margin, or margin:BUDGET,DEPTH, got {text!r}"
        )
    widths = [int(size) for size in sizes]
    return decoding.MarginTree(*widths) if kind else widths


def _one_or_all(values: tuple[float, ...] | None) -> float | list[float] | None:
    if values is None:
        return None
    return values[0] if len(values) == 1 else list(values)
