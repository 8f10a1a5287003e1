"""The one call: check a verifier, judge what came out, and report it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from jaxtyping import PRNGKeyArray

from gls_jax import checks, races, schemes
from gls_jax.conformance import (
    goodness_of_fit,
    known_mistakes,
    ragged_kind,
    shared_kind,
    token_kind,
    tree_kind,
)
from gls_jax.conformance.calling import Caller, Noise, VerifierError
from gls_jax.conformance.languages import NUM_TOKENS
from gls_jax.conformance.problem_set import LARGE, NUM_CATEGORIES
from gls_jax.conformance.report import CheckResult, Finding, Report
from gls_jax.conformance.session import Options, Outcome, Session
from gls_jax.typing import Report as ProgressReport

__all__ = ["KINDS", "PROBLEMS", "check"]

PROBLEMS: dict[str, tuple[str, ...]] = {
    "token": token_kind.PROBLEMS,
    "ragged": ragged_kind.PROBLEMS,
    "tree": tree_kind.PROBLEMS,
    "shared": shared_kind.PROBLEMS,
}
"""Names of the problems of each kind."""

KINDS: tuple[str, ...] = tuple(PROBLEMS)
"""The kinds of verifiers."""

MOST_TRIALS = 10_000_000
"""Of a problem; their answers are in memory at the same time."""

LONGEST_TIME = 1_000_000
"""Largest time limit, in seconds."""

INVARIANCES = ("none", "conditional", "strong")

_RUNS = {
    "token": token_kind.run,
    "ragged": ragged_kind.run,
    "tree": tree_kind.run,
    "shared": shared_kind.run,
}


def check(
    verifier: Any,
    *,
    kind: str,
    seed: int,
    noise: Noise = "key",
    num_trials: int = 100_000,
    problems: Sequence[str] | None = None,
    max_drafts: int | None = None,
    max_vocabulary: int | None = None,
    acceptance: str | Callable[..., Any] | None = None,
    diverse: bool = False,
    without_replacement: bool = False,
    separate_keys: bool = False,
    invariance: str | None = None,
    drafts: str | None = None,
    time_limit: float = 120.0,
    progress: ProgressReport | None = None,
) -> Report:
    """Try a verifier on the problems of its kind.

    Args:
        verifier: a function, or for kind `"shared"` an object; :mod:`gls_jax.conformance` has the
            signatures.
        kind: one of :data:`KINDS`.
        seed: of all noise, within ``0..2^32 - 1``. The same seed gives the same report, where the
            time limit does not cut trials.
        noise: `"key"`: the verifier takes a typed JAX key; `"seed"`: a Python int.
        num_trials: at most, for each problem. Problems of the size of a vocabulary have 1,000 to
            2,400.
        problems: names of the problems to try; None is all of the kind.
        max_drafts: largest `K` that the verifier takes (None: any); of a tree, siblings.
        max_vocabulary: largest `N` that the verifier takes (None: any).
        acceptance: what the verifier claims: the name of a scheme with that exact acceptance, or
            ``(log_p f32[N], log_q f32[N], num_drafts) -> float``. None claims nothing.
        diverse: kind `"token"`: drafts come from different distributions.
        without_replacement: kind `"tree"`: siblings are distinct.
        separate_keys: the drafter never sees the verifier's key, so that drafts made from the same
            key are not tried.
        invariance: kind `"shared"`: `"none"`, `"conditional"` or `"strong"`; None reads the
            object's attribute.
        drafts: kind `"shared"`: what proposals promise, `"independent"` samples of `p`,
            `"distinct"` ones (the first is a sample of `p`), or `"any"`; None is `"any"`.
        time_limit: seconds. Trials of slow verifiers are fewer; a verifier that cannot answer at
            all within it has a finding.
        progress: called with `(kind of work, steps done, steps)`.

    Returns:
        The :class:`Report`.

    Raises:
        ValueError: arguments that are wrong themselves. Whatever the verifier does wrong is a
            finding.

    >>> from gls_jax import conformance
    >>> def verify(key, drafts, draft_probs, target_probs):
    ...     return drafts[0]  # accepts everything
    >>> report = conformance.check(verify, kind="token", seed=0, num_trials=2000, max_drafts=1)
    >>> report.passed
    False
    """
    start = time.monotonic()
    name = verifier_name(verifier)
    checks.one_of(kind, KINDS, "kind")
    _check_verifier(verifier, kind)
    options = Options(
        noise=noise,
        num_trials=checks.count(num_trials, "num_trials"),
        max_drafts=max_drafts,
        max_vocabulary=max_vocabulary,
        problems=None if problems is None else tuple(problems),
        acceptance=_claimed_acceptance(acceptance, kind, max_drafts),
        diverse=diverse,
        without_replacement=without_replacement,
        separate_keys=separate_keys,
        invariance=invariance,
        drafts=drafts,
        time_limit=time_limit,
    )
    _check_options(options, kind)
    key: PRNGKeyArray = races.new_key(seed)
    session = Session(key, options, progress)
    caller = Caller(verifier, noise=noise, seconds=options.time_limit)
    _RUNS[kind](session, caller)
    results, findings = _judged(session.outcomes)
    return Report(
        verifier=name,
        kind=kind,
        seed=int(seed),
        calls=caller.calls or "never called",
        findings=findings,
        checks=results,
        false_failure_rate=goodness_of_fit.FALSE_FAILURE_RATE,
        seconds=time.monotonic() - start,
    )


def verifier_name(verifier: Any) -> str:
    """The name under which it is reported."""
    if isinstance(verifier, partial):
        verifier = verifier.func
    names = (getattr(verifier, name, None) for name in ("__name__", "name"))
    return next((name for name in names if isinstance(name, str)), type(verifier).__name__)


def _check_verifier(verifier: Any, kind: str) -> None:
    """A function, or an object with both functions of the kind `shared`."""
    if kind != "shared":
        if not callable(verifier):
            raise ValueError(f"verifier: expected a function, got {type(verifier).__name__}")
        return
    for name in ("propose", "verify"):
        if not callable(getattr(verifier, name, None)):
            got = type(verifier).__name__
            raise ValueError(f"verifier: expected an object with a method {name}, got {got}")
    if isinstance(verifier, type):
        raise ValueError(f"verifier: expected an object, got the class {verifier.__name__}")
    # Attributes that are read in place of options.
    if getattr(verifier, "max_drafts", None) is not None:
        checks.count(verifier.max_drafts, "verifier.max_drafts")
    if hasattr(verifier, "invariance"):
        checks.one_of(verifier.invariance, INVARIANCES, "verifier.invariance")


def _check_options(options: Options, kind: str) -> None:
    """Values of the options, and that this kind has them."""
    checks.one_of(options.noise, ("key", "seed"), "noise")
    for name in ("max_drafts", "max_vocabulary"):
        value = getattr(options, name)
        if value is not None:
            checks.count(value, name)
    if options.problems == ():
        raise ValueError(f"problems: expected some of {', '.join(PROBLEMS[kind])}, got none")
    for problem in options.problems or ():
        checks.one_of(problem, PROBLEMS[kind], "problems")
    if options.num_trials > MOST_TRIALS:
        raise ValueError(
            f"num_trials: expected at most {MOST_TRIALS:,}, got {options.num_trials:,}"
        )
    # The small problems have this many tokens.
    fewest = NUM_CATEGORIES if kind in ("token", "shared") else NUM_TOKENS
    if options.max_vocabulary is not None and options.max_vocabulary < fewest:
        raise ValueError(
            f"max_vocabulary: expected at least {fewest}, the tokens of the small problems, "
            f"got {options.max_vocabulary}"
        )
    for name, values in (
        ("invariance", INVARIANCES),
        ("drafts", ("independent", "distinct", "any")),
    ):
        value = getattr(options, name)
        if value is not None:
            checks.one_of(value, values, name)
    if not 0 < options.time_limit <= LONGEST_TIME:
        raise ValueError(
            f"time_limit: expected a number of seconds, at most {LONGEST_TIME:,}, "
            f"got {options.time_limit}"
        )
    kind_of = {"diverse": "token", "without_replacement": "tree"}
    kind_of |= {"invariance": "shared", "drafts": "shared"}
    for name, only_kind in kind_of.items():
        if getattr(options, name) and kind != only_kind:
            raise ValueError(f"{name}: expected kind {only_kind!r}, got kind {kind!r}")


def _claimed_acceptance(
    acceptance: str | Callable[..., Any] | None, kind: str, max_drafts: int | None
):
    if isinstance(acceptance, str):
        scheme = schemes.get(acceptance)
        if scheme.exact is None:
            raise ValueError(f"acceptance: scheme '{scheme.name}' has no exact one of a token")
        # The chains of a ragged verifier have one draft at each position.
        limit = scheme.max_drafts
        if limit is not None and kind != "ragged" and (max_drafts is None or max_drafts > limit):
            raise ValueError(
                f"acceptance: scheme '{scheme.name}' takes at most {limit} draft, expected "
                f"max_drafts={limit} (--max-drafts {limit}), got {max_drafts}"
            )
        return scheme.acceptance
    if acceptance is not None and not callable(acceptance):
        raise ValueError(f"acceptance: expected a scheme or a function, got {acceptance!r}")
    return acceptance


def _judged(outcomes: list[Outcome]) -> tuple[tuple[CheckResult, ...], tuple[Finding, ...]]:
    """Every outcome with its status, and one finding for each check that failed."""
    # The false-failure rate of the report is divided among all tests.
    num_tests = sum(outcome.p_value is not None for outcome in outcomes)
    alpha = goodness_of_fit.FALSE_FAILURE_RATE / max(num_tests, 1)
    wrong = {(outcome.check, outcome.problem) for outcome in outcomes if outcome.has_failed(alpha)}
    for outcome in outcomes:
        # A consequence of what is reported anyway.
        if (outcome.consequence_of, outcome.problem) in wrong and outcome.is_wrong(alpha):
            outcome.is_note_only, outcome.failure = True, f"see {outcome.consequence_of}"
    failed: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.has_failed(alpha):
            failed.setdefault(outcome.check, []).append(outcome)
    findings = tuple(_finding(group, alpha) for group in failed.values())
    return tuple(_result(outcome, alpha) for outcome in outcomes), findings


def _result(outcome: Outcome, alpha: float) -> CheckResult:
    status: Literal["passed", "failed", "noted", "skipped"] = "passed"
    if outcome.is_skipped:
        status = "skipped"
    elif outcome.has_failed(alpha):
        status = "failed"
    elif outcome.is_wrong(alpha):
        status = "noted"
    bias = None
    # A distribution of one possible token has no bias but an impossible token.
    if outcome.num_cells is not None and outcome.num_cells > 1:
        bias = goodness_of_fit.smallest_bias(outcome.num_trials, outcome.num_cells, alpha)
    return CheckResult(
        check=outcome.check,
        problem=outcome.problem,
        status=status,
        num_trials=outcome.num_trials,
        detail=outcome.failure or outcome.detail or outcome.message,
        p_value=outcome.p_value,
        smallest_bias=bias,
    )


def _finding(failed: list[Outcome], alpha: float) -> Finding:
    """All failures of one check, with the smallest failing problem."""
    worst = min(failed, key=lambda outcome: (outcome.problem in LARGE, outcome.num_cells or 0))
    smaller = None
    if worst.find_smaller is not None:
        # What went wrong before is reported, whatever happens to smaller problems.
        with contextlib.suppress(VerifierError):
            smaller = worst.find_smaller(alpha)
    shown = smaller or worst
    message = shown.failure or shown.message
    counted = [
        outcome.one_draft_counts for outcome in failed if outcome.one_draft_counts is not None
    ]
    names = known_mistakes.that_fit(counted)
    if names:
        message += f"; the counts with one draft fit: {'; or: '.join(names)}"
    problems = tuple(dict.fromkeys(outcome.problem for outcome in failed))
    return Finding(shown.check, worst.problem, message, problems, dict(shown.example))
