"""The whole job: answer requests, keep each result, share the work, resume."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gls_jax import checks, races
from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.requests.replies import Reply, stop_conditions
from gls_jax.decoding.requests.running_batches import Timer, run_batches
from gls_jax.decoding.requests.text_requests import (
    TextOptions,
    TextRequest,
    encode_prompt,
    request_hash,
)
from gls_jax.runs import cluster, files
from gls_jax.runs.jsonl_results import JsonlResults
from gls_jax.typing import Report

if TYPE_CHECKING:
    # gls_jax.models imports flax, decoding does not.
    from gls_jax.models.model_pair import ModelPair

__all__ = ["Answers", "answer"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The replies to requests, with figures of the run.

    Attributes:
        records: :meth:`Reply.record` of each finished reply, in the order of the requests.
        share_size: number of requests that this process worked on in this call.
        timer: where the time of this process went.
        problem: one line about the requests without a result, or None if all have one.
    """

    records: list[dict[str, Any]]
    share_size: int
    timer: Timer
    problem: str | None

    def summary(self) -> dict[str, Any]:
        """Figures of all records, at least one, as JSON.

        Times are those of the texts that were generated in this call.
        """
        histogram = np.array([record["accepted"] for record in self.records])
        num_tokens = np.array([len(record["tokens"]) for record in self.records])
        # The figures below do not depend on the sizes that are set to 0.
        # Records of earlier versions do not have it.
        tried = [record.get("tried") for record in self.records]
        metrics = Metrics(
            histogram,
            num_tokens,
            nodes=0,
            calls_per_round=0,
            rounds=0,
            tried=None if None in tried else np.array(tried),
        )
        reasons = [record["finish_reason"] for record in self.records]
        figures = {
            "requests": len(self.records),
            "stopped": reasons.count("stop"),
            "tokens": int(num_tokens.sum()),
            "target_calls": int(histogram.sum()),
            "draft_calls": sum(record["draft_calls"] for record in self.records),
            "block_efficiency": _number(metrics.block_efficiency),
            "acceptance_histogram": metrics.acceptance_histogram.tolist(),
            "acceptance_by_position": [_number(share) for share in metrics.acceptance_by_position],
            "warm_up_seconds": self.timer.warm_up,
            "seconds": self.timer.seconds,
            "tokens_per_second": self.timer.tokens_per_second,
        }
        if self.timer.parts is not None:
            figures["parts"] = self.timer.parts
        return figures


def answer(
    requests: Sequence[TextRequest],
    load_models: Callable[[], ModelPair],
    options: DecodeOptions,
    text_options: TextOptions,
    *,
    configuration: Mapping[str, Any],
    batch_size: int = 8,
    path: Path | None = None,
    resume: bool = False,
    timed: bool = False,
    on_text: Callable[[str], object] | None = None,
    progress: Report | None = None,
) -> Answers:
    """Answer requests with a target and its drafter, and append each result to a file.

    In a cluster (:mod:`gls_jax.runs.cluster`) every process calls this function with the same
    arguments, and each answers its share of the requests. Results depend neither on the batch size
    nor on the processes, unless drafting is automatic and the scheme is not strongly invariant.

    Args:
        requests: the requests.
        load_models: loads the models; not called when all results exist.
        options: decoding options; length, temperature and stop tokens come from the requests.
        text_options: how prompts become tokens, and what ends the replies.
        configuration: everything that the results depend on in addition to the requests, as JSON:
            the names of the models and the options. Results of another one are refused.
        batch_size: requests in one batch.
        path: JSONL file of the results; None keeps them in memory only, in a single process.
        resume: whether to continue the results in an existing file.
        timed: whether to measure the parts of a round, which costs some speed.
        on_text: called with each new piece of text; pieces of different replies alternate.
        progress: called with `("requests", requests done, requests)`, of this process.

    Returns:
        All results, with the problem of those that are missing.

    Raises:
        ValueError: options out of range, results of something else in the file, or processes that
            differ in what they were given.
        OSError: the file cannot be written, another run is using it, or a process has died.
    """
    checks.count(batch_size, "batch")
    text_options.check()
    hashes = {
        request.number: request_hash(request, configuration, text_options.seed)
        for request in requests
    }
    _make_folder(path)
    is_primary = cluster.index() == 0
    with files.alone(path) if path is not None and is_primary else nullcontext():
        # Several processes cannot append to one file: each writes a separate part.
        process = cluster.index() if cluster.size() > 1 else None
        results = JsonlResults(path, resume, hashes, process)

        # All processes must have read the same results before one of them writes.
        state = json.dumps([hashes, sorted(results.done)])
        cluster.barrier(hashlib.sha256(state.encode()).hexdigest())
        unanswered = [request for request in requests if request.number not in results.done]
        share = [unanswered[i] for i in cluster.shard(len(unanswered))]

        # Models are loaded only for requests that have no result.
        timer = Timer()
        if share:
            pair = load_models()
            timer = run_batches(
                pair.target.language_model,
                pair.drafting,
                _new_replies(share, pair, text_options),
                options,
                batch_size=batch_size,
                timed=timed,
                on_text=on_text,
                on_finished=_keep(results, len(share), progress),
            )

        # All parts must be complete before they become one file.
        cluster.barrier()
        if is_primary:
            results.merge()
    return Answers(
        records=[results.done[r.number] for r in requests if r.number in results.done],
        share_size=len(share),
        timer=timer,
        problem=_problem(results, share, requests if is_primary else (), path),
    )


def _make_folder(path: Path | None) -> None:
    """The folder of the results, if they go to a file."""
    if path is not None:
        files.check_folder(path.parent)
        path.parent.mkdir(parents=True, exist_ok=True)
    elif cluster.size() > 1:
        # Several processes exchange their results through files.
        raise ValueError("path: expected a file for the results of all processes, got None")


def _keep(
    results: JsonlResults,
    share_size: int,
    progress: Report | None,
) -> Callable[[dict[str, Any]], None]:
    """A function that keeps a record and reports the progress, which starts here."""
    total = len(results.done) + share_size

    def report() -> None:
        if progress is not None:
            progress("requests", len(results.done), total)

    def keep(record: dict[str, Any]) -> None:
        results.append(record)
        report()

    report()
    return keep


def _new_replies(
    requests: Sequence[TextRequest], pair: ModelPair, options: TextOptions
) -> list[Reply]:
    """Replies that are still empty."""
    from gls_jax import models

    template = models.chat_template(pair.target_name) if options.chat else None
    if template is None and options.system is not None:
        raise ValueError(
            f"{pair.target_name}: expected a chat template for a system message, got none"
        )
    # A chat model ends its turn with a token of the template, a base model with end-of-text.
    model_tokens = list(pair.target.config.eos_token_ids)
    if template is not None:
        end_of_turn = template.end_of_turn(pair.tokenizer)
        if end_of_turn is not None:
            model_tokens.append(end_of_turn)
    stops = stop_conditions(options.stop, model_tokens, pair.tokenizer)

    common_key = races.new_key(options.seed)
    context_window = pair.target.config.max_positions
    replies = []
    for request in requests:
        prompt = encode_prompt(request, pair.tokenizer, template, options.system)
        if len(prompt) >= context_window:
            raise ValueError(
                f"{request.where}: expected fewer tokens than the model's context of "
                f"{context_window}, got {len(prompt)}"
            )
        if request.seed is None:
            key = jax.random.fold_in(common_key, request.number)
        else:
            key = races.new_key(request.seed)
        # The reply of a chat is a new text; any other reply continues the prompt.
        seen_tokens = prompt if template is None else ()
        reply = Reply(
            request=request,
            prompt=prompt,
            key=key,
            max_new_tokens=min(request.max_new_tokens, context_window - len(prompt)),
            stops=stops,
            detokenizer=models.Detokenizer(pair.tokenizer, seen_tokens),
        )
        replies.append(reply)
    return replies


def _problem(
    results: JsonlResults,
    share: Sequence[TextRequest],
    expected: Sequence[TextRequest],
    path: Path | None,
) -> str | None:
    """Error line for requests without a result: those of this process, else all `expected`."""
    broken = [request.where for request in share if request.number not in results.done]
    if broken:
        return f"{', '.join(broken)}: expected logits with a largest one, got NaN or infinite ones"
    missing = [request.where for request in expected if request.number not in results.done]
    if missing:
        return (
            f"{', '.join(missing)}: expected in the parts of the other processes, got none; "
            "see their error messages; if the hosts share no folder, bring all "
            f"{path}.part* into one and resume there"
        )
    return None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else float(value)
