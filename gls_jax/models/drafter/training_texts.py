"""Texts to train a drafter on: the target's own replies, and plain text.

A drafter is to guess what its target would write, so the target's own texts are the best ones.
Prompts come from the user, or from the target too: a chat model that is given the beginning of a
user's turn writes a user's turn (Magpie, Xu et al. 2406.08464).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gls_jax.decoding import DecodeOptions, requests
from gls_jax.drafter_options import OWN_PROMPTS, TextSource
from gls_jax.models.chat import ChatTemplate, chat_template
from gls_jax.models.drafter.text_batches import TEXTS_OF_PROMPT
from gls_jax.models.drafter.text_features import weights_hash
from gls_jax.runs import files
from gls_jax.typing import Report

if TYPE_CHECKING:
    from gls_jax.models.model_pair import ModelPair

__all__ = ["pieces_of_plain_text", "replies_of_target"]

_PLACEHOLDER = "gls-jax"
# Of a prompt that the target writes: most tokens, and fewest characters. Others are left out.
_PROMPT_TOKENS = 80
_LEAST_CHARACTERS = 12
# How many more prompts are asked for than are needed, because some are left out.
_SPARE_PROMPTS = 1.25
# With a smaller share of usable ones among so many, the model cannot write prompts.
_LEAST_SHARE = 0.02
_LEAST_ASKED = 128


def replies_of_target(
    folder: Path,
    pair: ModelPair,
    source: TextSource,
    *,
    seed: int,
    resume: bool = False,
    progress: Report | None = None,
) -> list[list[int]]:
    """Let the target answer prompts, and keep the replies in the folder.

    Args:
        folder: of the training run; `prompts.jsonl` and `replies.jsonl` are written there.
        pair: the target alone.
        source: where the prompts come from.
        seed: of all texts.
        resume: continue an earlier call that was stopped.
        progress: called with the kind of work, and how much of it is done.

    Returns:
        Token ids of each text: prompt and reply.

    Raises:
        ValueError: options out of range, a target without a chat template for its own prompts, or
            files of another run.
        OSError: the folder cannot be written.
    """
    source.check()
    if source.prompts == OWN_PROMPTS:
        text_requests = _own_requests(folder, pair, source, seed, resume, progress)
    else:
        text_requests = _requests_of_file(Path(source.prompts), source)
    records = _answers(
        text_requests,
        pair,
        source,
        requests.TextOptions(seed=seed),
        path=folder / "replies.jsonl",
        resume=resume,
        progress=progress,
        kind="replies",
    )
    template = chat_template(pair.target_name)
    texts = []
    for request, record in zip(text_requests, records, strict=True):
        prompt = requests.encode_prompt(request, pair.tokenizer, template, None)
        texts.append([*prompt, *record["tokens"]][: source.text_tokens])
    return texts


def pieces_of_plain_text(pair: ModelPair, source: TextSource) -> list[list[int]]:
    """Plain text as token ids, in pieces of `text_tokens`; the last of a file may be shorter."""
    pieces = []
    for path in source.plain_text:
        tokens = pair.tokenizer.encode(files.read_text(path)).ids
        for start in range(0, len(tokens), source.text_tokens):
            pieces.append(tokens[start : start + source.text_tokens])
    # A piece of one token has nothing to learn from.
    return [piece for piece in pieces if len(piece) > 1]


def _own_requests(
    folder: Path, pair: ModelPair, source: TextSource, seed: int, resume: bool, progress
) -> list[requests.TextRequest]:
    """Requests for replies to prompts that the target writes."""
    beginning = _beginning_of_user_turn(pair)
    num_needed = -(-source.texts // TEXTS_OF_PROMPT)
    num_asked = 0
    prompts: list[str] = []
    while len(prompts) < num_needed:
        missing = num_needed - len(prompts)
        num_asked += -(-int(missing * _SPARE_PROMPTS) // source.batch) * source.batch
        numbered = requests.requests_from_prompts(
            itertools.repeat(beginning, num_asked), max_new_tokens=_PROMPT_TOKENS, temperature=1.0
        )
        records = _answers(
            numbered,
            pair,
            source,
            # The beginning is text of a template already.
            requests.TextOptions(seed=seed, chat=False),
            path=folder / "prompts.jsonl",
            resume=resume,
            progress=progress,
            kind="prompts",
        )
        prompts = _usable(records, pair, source)
        # If more are needed, the file of these is continued.
        resume = True
        # Few of the prompts of a model that was not trained for chats end.
        if len(prompts) < num_asked * _LEAST_SHARE and num_asked >= _LEAST_ASKED:
            raise ValueError(
                f"{pair.target_name}: expected a chat model that writes prompts, got "
                f"{len(prompts)} of {num_asked} that end; give a file of prompts"
            )
    numbers = range(source.texts)
    return _requests([prompts[number // TEXTS_OF_PROMPT] for number in numbers], source)


def _beginning_of_user_turn(pair: ModelPair) -> str:
    template: ChatTemplate | None = chat_template(pair.target_name)
    if template is None:
        raise ValueError(
            f"{pair.target_name}: expected a chat template for prompts that the target writes, "
            "got none; give a file of prompts"
        )
    turn = [{"role": "user", "content": _PLACEHOLDER}]
    return template.render(turn, add_generation_prompt=False).partition(_PLACEHOLDER)[0]


def _usable(records: Iterable[dict[str, Any]], pair: ModelPair, source: TextSource) -> list[str]:
    """Prompts that end, leave room for a reply, are not too short, and repeat no earlier one."""
    template = chat_template(pair.target_name)
    assert template is not None  # it wrote the beginning of the turn
    room = min(source.text_tokens, pair.target.config.max_positions)
    prompts: dict[str, None] = {}
    for record in records:
        text = record["text"].strip()
        if record["finish_reason"] != "stop" or len(text) < _LEAST_CHARACTERS:
            continue
        rendered = template.render([{"role": "user", "content": text}])
        prompt = pair.tokenizer.encode(rendered, add_special_tokens=False).ids
        if len(prompt) < room:
            prompts.setdefault(text)
    return list(prompts)


def _requests_of_file(path: Path, source: TextSource) -> list[requests.TextRequest]:
    if path.suffix == ".jsonl":
        read = requests.read_requests(
            path, max_new_tokens=source.max_new_tokens, temperature=source.temperatures[0]
        )
        prompts: list[Any] = [request.prompt for request in read]
    else:
        prompts = [line for line in files.read_text(path).split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"{path}: expected at least one prompt, got none")
    return _requests(prompts[: source.texts], source)


def _requests(prompts: Sequence[Any], source: TextSource) -> list[requests.TextRequest]:
    return [
        requests.TextRequest(
            number=number,
            prompt=prompt,
            max_new_tokens=source.max_new_tokens,
            temperature=source.temperatures[number % len(source.temperatures)],
            seed=None,
            where=f"prompt {number + 1}",
        )
        for number, prompt in enumerate(prompts)
    ]


def _answers(
    text_requests: Sequence[requests.TextRequest],
    pair: ModelPair,
    source: TextSource,
    text_options: requests.TextOptions,
    *,
    path: Path,
    resume: bool,
    progress: Report | None,
    kind: str,
) -> list[dict[str, Any]]:
    """Records of the target's replies, in the order of the requests."""
    configuration = {
        "target": pair.target_name,
        "weights": weights_hash(pair.target.model),
        "top_k": source.top_k,
        "chat": text_options.chat,
    }

    def report(_: str, done: int, total: int) -> None:
        if progress is not None:
            progress(kind, done, total)

    answers = requests.answer(
        text_requests,
        lambda: pair,
        DecodeOptions(top_k=source.top_k or None),
        text_options,
        configuration=configuration,
        batch_size=source.batch,
        path=path,
        resume=resume,
        progress=report,
    )
    if answers.problem is not None:
        raise ValueError(answers.problem)
    return answers.records
