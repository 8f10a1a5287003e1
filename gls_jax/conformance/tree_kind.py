"""Checks of a verifier of trees of drafts."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from gls_jax.conformance import emitted, hard_keys, same_key
from gls_jax.conformance.calling import Caller
from gls_jax.conformance.languages import TREE_LANGUAGES, Language, large_language
from gls_jax.conformance.problem_set import LARGE, pair_of
from gls_jax.conformance.session import Outcome, Session, Step
from gls_jax.conformance.tree_trials import SHAPES, Shape, TreeTrials

__all__ = ["PROBLEMS", "run"]

PROBLEMS: tuple[str, ...] = tuple(dict.fromkeys((*TREE_LANGUAGES, *LARGE)))
"""Names of the problems."""

_LARGE_TRIALS = 1_000
_LARGE_SHAPE = Shape("two siblings", [0, 0])
_EXCLUDED_DRAFTS = "disjoint"  # drafts always what the target never emits
_REPEATED_CALLS = 200  # where each is a call of its own


def run(session: Session, caller: Caller) -> None:
    """All checks of kind `tree`."""
    options = session.options
    shapes = [shape for shape in SHAPES if shape.list_size <= (options.max_drafts or math.inf)]
    languages = [language for name, language in TREE_LANGUAGES.items() if options.wants(name)]
    steps: list[Step] = []
    for shape in shapes:
        for language in languages:
            if _has_enough_tokens(session, language, shape):
                steps.append((language.name, partial(_problem, session, caller, language, shape)))
    for language in languages[:1]:
        steps.append((language.name, partial(_repeated, session, caller, language, shapes[-1])))
        # Distinct drafts are the ranks of one race: no way of drawing one token at a time.
        if not options.separate_keys and not options.without_replacement:
            for way in same_key.ways(options.noise):
                shape = shapes[-1]
                steps.append(
                    (language.name, partial(_from_same_key, session, caller, language, shape, way))
                )
    if options.noise == "key" and options.wants(_EXCLUDED_DRAFTS) and shapes[0].list_size == 1:
        steps.append((_EXCLUDED_DRAFTS, partial(_zero_uniform, session, caller, shapes[0])))
    for name in LARGE:
        if options.wants(name):
            steps.append((name, partial(_large, session, caller, name)))
    session.run(steps)


def _has_enough_tokens(session: Session, language: Language, shape: Shape) -> bool:
    """Distinct siblings need as many possible tokens."""
    fewest = int((language.p > 0).sum(-1).min())
    return not session.options.without_replacement or fewest >= shape.list_size


def _trials(session: Session, language: Language, shape: Shape, way=None) -> TreeTrials:
    # The trials of a problem are divided among the shapes.
    num_trials = max(1, session.options.num_trials // len(SHAPES))
    return TreeTrials(session, language, shape, num_trials, way=way)


def _problem(session: Session, caller: Caller, language: Language, shape: Shape) -> None:
    """The texts, and how often a child of the root is emitted."""
    trials = _trials(session, language, shape)
    with session.usable_answers(language.name, trials.example) as usable:
        answers = trials.answers(caller, session.seconds_per_problem)
        usable.num_trials = len(answers)
        outcome = _text_outcome(trials, answers)
        if shape.name == "chain":
            first_tokens = np.bincount(trials.texts(answers)[:, 0], minlength=len(language.q[0, 0]))
            outcome.one_draft_counts = (language.p[0, 0], language.q[0, 0], first_tokens)
        session.outcomes.append(outcome)
        if shape.name == "siblings":
            session.outcomes += _acceptance(session, trials, answers)


def _text_outcome(trials: TreeTrials, answers: np.ndarray) -> Outcome:
    what = f"after a tree of shape '{trials.shape.name}'"
    texts = trials.texts(answers)
    return emitted.text_distribution(
        emitted.DISTRIBUTION, trials.language, texts, what, trials.example
    )


def _acceptance(session: Session, trials: TreeTrials, answers: np.ndarray) -> list[Outcome]:
    """How often the first token is one of the drafts."""
    language, num_drafts = trials.language, trials.shape.list_size
    pair = pair_of(language.name, language.p[0, 0], language.q[0, 0])
    is_accepted = (trials.tokens[: len(answers)] == answers[:, :1]).any(-1)
    exact = session.options.acceptance
    count = int(is_accepted.sum())
    return emitted.acceptance(
        pair,
        num_drafts,
        count,
        len(answers),
        exact,
        trials.example(None),
        is_independent=not session.options.without_replacement,
    )


def _repeated(session: Session, caller: Caller, language: Language, shape: Shape) -> None:
    """The same keys once more, and in another order among other neighbours."""
    trials = _trials(session, language, shape)
    if not caller.is_compiled:
        trials.keep(_REPEATED_CALLS)
    with session.usable_answers(language.name, trials.example):
        answers = partial(trials.answers, caller, math.inf)
        session.outcomes += emitted.repeats(language.name, trials, answers)


def _from_same_key(
    session: Session, caller: Caller, language: Language, shape: Shape, way: same_key.Way
) -> None:
    """Drafts from the key of the verifier."""
    trials = _trials(session, language, shape, way)
    if not caller.is_compiled:
        trials.keep(session.num_side_trials)
    with session.usable_answers(language.name, trials.example):
        outcome = _text_outcome(trials, trials.answers(caller, session.seconds_per_problem))
        session.outcomes.append(emitted.shared_noise(outcome, way, trials.example(None)))


def _zero_uniform(session: Session, caller: Caller, shape: Shape) -> None:
    """Keys of which a uniform is exactly 0, and drafts that must never be emitted."""
    keys = hard_keys.keys()
    trials = TreeTrials(session, TREE_LANGUAGES[_EXCLUDED_DRAFTS], shape, len(keys), keys=keys)
    with session.usable_answers(_EXCLUDED_DRAFTS, trials.example):
        outcome = _text_outcome(trials, trials.answers(caller, session.seconds_per_problem))
        session.outcomes.append(emitted.of_zero_uniforms(outcome))


def _large(session: Session, caller: Caller, name: str) -> None:
    """First tokens over a vocabulary, after one draft or two."""
    if session.skips_size(name, LARGE[name][0]):
        return
    language, pair = large_language(name)
    most = session.options.max_drafts
    shape = Shape("one node", [0]) if most == 1 else _LARGE_SHAPE
    num_trials = min(_LARGE_TRIALS, session.options.num_trials)
    trials = TreeTrials(session, language, shape, num_trials)
    check = emitted.large_check(name)
    with session.usable_answers(name, trials.example) as usable:
        answers = trials.answers(caller, session.seconds_per_large_problem)
        usable.num_trials = len(answers)
        outcome = emitted.distribution(pair, answers[:, 0], trials.example, check=check)
        session.outcomes.append(outcome)
