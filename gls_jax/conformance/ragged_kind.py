"""Checks of the batched rejection sampler of a serving engine."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from jaxtyping import Int

from gls_jax.conformance import emitted, goodness_of_fit, hard_keys, same_key
from gls_jax.conformance.calling import Caller
from gls_jax.conformance.languages import LANGUAGES, Language, large_language
from gls_jax.conformance.problem_set import LARGE, pair_of
from gls_jax.conformance.ragged_calls import GROUP, LENGTHS, WITH_DRAFTS, Calls
from gls_jax.conformance.session import Outcome, Session, Step

__all__ = ["PROBLEMS", "run"]

PROBLEMS: tuple[str, ...] = tuple(dict.fromkeys((*LANGUAGES, *LARGE)))
"""Names of the problems."""

_ONE_DRAFT, _, _MOST_DRAFTS = WITH_DRAFTS
_GROUPS = 128  # of four requests, in one call
_DEPENDENT_CALLS = 500  # of four requests, where requests of one call depend on each other
_LARGE_CALLS = 600
_EXCLUDED_DRAFTS = "disjoint"  # drafts always what the target never emits
# Neighbours that are this dependent make every count wrong that takes them together.
_DEPENDENT = 1e-9


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `ragged`."""
    options = session.options
    languages = [language for name, language in LANGUAGES.items() if options.wants(name)]
    steps: list[Step] = []
    # The neighbours come first: whether requests of one call can be counted together.
    for language in languages[:1]:
        steps.append((language.name, partial(_neighbours, session, caller, language)))
        steps.append((language.name, partial(_repeated, session, caller, language)))
    for language in languages:
        steps.append((language.name, partial(_problem, session, caller, language)))
    for language in languages[:1]:
        for way in same_key.ways(options.noise) if not options.separate_keys else ():
            steps.append((language.name, partial(_from_same_key, session, caller, language, way)))
    if options.noise == "key" and options.wants(_EXCLUDED_DRAFTS):
        steps.append((_EXCLUDED_DRAFTS, partial(_zero_uniform, session, caller)))
    for name in LARGE:
        if options.wants(name):
            steps.append((name, partial(_large, session, caller, name)))
    session.run(steps)


def _sizes(session: Session) -> tuple[int, int]:
    """Number of calls and of groups in each; one group where neighbours depend on each other."""
    num_trials = session.options.num_trials
    if session.has_dependent_neighbours:
        return min(_DEPENDENT_CALLS, num_trials), 1
    num_groups = min(_GROUPS, max(1, num_trials // GROUP))
    return max(1, num_trials // (num_groups * GROUP)), num_groups


def _problem(session: Session, caller: Caller, language: Language) -> None:
    """Texts of requests with one, two and three drafts, and how often the first is accepted."""
    calls = Calls(session, language, *_sizes(session))
    with session.usable_answers(language.name, calls.example) as usable:
        answers = calls.answers(caller, session.seconds_per_problem)
        usable.num_trials = answers.shape[0] * answers.shape[1]
        for request in WITH_DRAFTS:
            session.outcomes.append(_text_outcome(calls, answers, request))
        # A request with a draft has a second token only if its first draft is accepted.
        second_tokens = answers[:, calls.num_drafts > 0, 1]
        pair = pair_of(language.name, language.p[0, 0], language.q[0, 0])
        is_accepted = second_tokens >= 0
        exact = session.options.acceptance
        example = calls.example(None, request=_ONE_DRAFT)
        count = int(is_accepted.sum())
        session.outcomes += emitted.acceptance(pair, 1, count, is_accepted.size, exact, example)


def _text_outcome(calls: Calls, answers: np.ndarray, first: int) -> Outcome:
    """Texts of all requests with as many drafts, completed, against the target's texts."""
    language, length = calls.language, LENGTHS[first] + 1
    requests = range(first, answers.shape[1], GROUP)
    texts = np.stack([calls.texts(answers, request, length) for request in requests], 1)
    texts = texts.reshape(-1, length)

    def example(trial: int | None):
        if trial is None:
            return calls.example(None, first)
        call, row = divmod(trial, len(requests))
        return calls.example(call, requests[row])

    what = f"after a chain of {length - 1}"
    outcome = emitted.text_distribution(emitted.DISTRIBUTION, language, texts, what, example)
    if length == 2:
        first_tokens = np.bincount(texts[:, 0], minlength=language.num_categories)
        outcome.one_draft_counts = (language.p[0, 0], language.q[0, 0], first_tokens)
    return outcome


def _neighbours(session: Session, caller: Caller, language: Language) -> None:
    """Whether a request depends on its neighbours: on their arguments, or by shared noise."""
    calls = Calls(session, language, *_sizes(session))
    # The third and the fourth of each group keep theirs.
    is_kept = np.arange(len(calls.num_drafts)) % GROUP >= 2
    with session.usable_answers(language.name, calls.example):
        answers = calls.answers(caller, math.inf)
        calls.change(~is_kept)
        among_others = calls.answers(caller, math.inf)
        calls.change(None)
        session.outcomes.append(_inputs_of_neighbours(calls, answers, among_others, is_kept))
        independence = _independence(calls, answers)
        session.outcomes.append(independence)
        p_value = independence.p_value
        session.has_dependent_neighbours = p_value is not None and p_value < _DEPENDENT


def _inputs_of_neighbours(calls: Calls, answers, among_others, is_kept) -> Outcome:
    """Answers of requests that kept their arguments, while their neighbours' changed."""
    differs = (answers != among_others).any(-1) & is_kept
    outcome = Outcome("neighbours' arguments do not matter", calls.language.name, answers.shape[0])
    if differs.any():
        call, request = (int(i) for i in np.argwhere(differs)[0])
        outcome.failure = (
            f"request {request} got {among_others[call, request].tolist()} after "
            f"{answers[call, request].tolist()}, when only other requests changed"
        )
        outcome.example = calls.example(call)
    return outcome


def _independence(calls: Calls, answers: Int[np.ndarray, "C B W"]) -> Outcome:
    """First tokens of two neighbours against the product of their distributions.

    Requests 2 and 3 of a group stand side by side, and both have drafts. The first token of each is
    a sample of the target, so that nothing is known about the pair but that.
    """
    size = calls.language.num_categories
    left, right = answers[:, 2::GROUP, 0], answers[:, 3::GROUP, 0]
    pairs = (left * size + right).ravel()
    counts = np.bincount(pairs, minlength=size**2).reshape(size, size)
    # The product of the observed margins, so that a wrong margin is not called dependence. It is
    # nearer to the counts than the product of the true ones, so the bound of the test holds.
    total = max(counts.sum(), 1)
    product = np.outer(counts.sum(1), counts.sum(0)) / total**2
    p_value = 1.0
    if counts.any():
        p_value = goodness_of_fit.p_value(counts.ravel(), product.ravel(), num_categories=size**2)
    return Outcome(
        "neighbours are independent",
        calls.language.name,
        len(pairs),
        p_value=p_value,
        num_cells=size**2,
        message="the first tokens of neighbouring requests depend on each other; the same random "
        "numbers for several requests?",
        example=calls.example(None),
    )


def _repeated(session: Session, caller: Caller, language: Language) -> None:
    """The same calls once more, and in reverse order."""
    calls = Calls(session, language, *_sizes(session))
    with session.usable_answers(language.name, calls.example):
        answers = partial(calls.answers, caller, math.inf)
        session.outcomes += emitted.repeats(language.name, calls, answers)


def _from_same_key(session: Session, caller: Caller, language: Language, way: same_key.Way) -> None:
    """Drafts from the key of the call."""
    calls = Calls(session, language, *_sizes(session), way=way)
    with session.usable_answers(language.name, calls.example):
        answers = calls.answers(caller, session.seconds_per_problem)
        for request in WITH_DRAFTS:
            outcome = _text_outcome(calls, answers, request)
            example = calls.example(None, request)
            session.outcomes.append(emitted.shared_noise(outcome, way, example))


def _zero_uniform(session: Session, caller: Caller) -> None:
    """Keys of which a uniform is exactly 0, and drafts that must never be emitted."""
    keys = hard_keys.keys()
    calls = Calls(session, LANGUAGES[_EXCLUDED_DRAFTS], len(keys), _sizes(session)[1], keys=keys)
    with session.usable_answers(_EXCLUDED_DRAFTS, calls.example):
        outcome = _text_outcome(
            calls, calls.answers(caller, session.seconds_per_problem), _MOST_DRAFTS
        )
        session.outcomes.append(emitted.of_zero_uniforms(outcome))


def _large(session: Session, caller: Caller, name: str) -> None:
    """First tokens over a vocabulary."""
    if session.skips_size(name, LARGE[name][0]):
        return
    language, pair = large_language(name)
    num_calls = min(_LARGE_CALLS, max(1, session.options.num_trials // GROUP))
    calls = Calls(session, language, num_calls, 1)
    check = emitted.large_check(name)
    with session.usable_answers(name, calls.example) as usable:
        answers = calls.answers(caller, session.seconds_per_large_problem)
        usable.num_trials = answers.shape[0] * answers.shape[1]
        first_tokens = answers[:, calls.num_drafts > 0, 0].ravel()
        example = partial(calls.example, None, request=_ONE_DRAFT)
        session.outcomes.append(
            emitted.distribution(pair, first_tokens, lambda _: example(), check=check)
        )
