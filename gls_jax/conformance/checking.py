"""The one call: check a verifier, judge what came out, and report it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import PRNGKeyArray

from gls_jax import checks, races, schemes
from gls_jax.conformance import evidence, ragged_kind, token_kind
from gls_jax.conformance.calling import Caller, Noise
from gls_jax.conformance.report import CheckResult, Finding, Report
from gls_jax.conformance.session import Options, Outcome, Session
from gls_jax.typing import Report as ProgressReport

__all__ = ["KINDS", "check"]

_RUNS = {"token": token_kind.run, "ragged": ragged_kind.run}

KINDS: tuple[str, ...] = tuple(_RUNS)
"""The kinds of verifiers."""


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
        num_trials: at most, for each problem. Problems of the size of a vocabulary have 2,000.
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
    options = Options(
        noise=noise,
        num_trials=checks.count(num_trials, "num_trials"),
        max_drafts=max_drafts,
        max_vocabulary=max_vocabulary,
        problems=None if problems is None else tuple(problems),
        acceptance=_claimed_acceptance(acceptance),
        diverse=diverse,
        without_replacement=without_replacement,
        separate_keys=separate_keys,
        invariance=invariance,
        drafts=drafts,
        time_limit=float(time_limit),
    )
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
        false_failure_rate=evidence.FALSE_FAILURE_RATE,
        seconds=time.monotonic() - start,
    )


def verifier_name(verifier: Any) -> str:
    """The name under which it is reported."""
    return getattr(verifier, "__name__", None) or getattr(verifier, "name", None) or repr(verifier)


def _claimed_acceptance(acceptance: str | Callable[..., Any] | None):
    if isinstance(acceptance, str):
        return schemes.get(acceptance).acceptance
    if acceptance is not None and not callable(acceptance):
        raise ValueError(f"acceptance: expected a scheme or a function, got {acceptance!r}")
    return acceptance


def _judged(outcomes: list[Outcome]) -> tuple[tuple[CheckResult, ...], tuple[Finding, ...]]:
    """Every outcome with its status, and one finding for each check that failed."""
    num_tests = sum(outcome.p_value is not None for outcome in outcomes)
    alpha = evidence.FALSE_FAILURE_RATE / max(num_tests, 1)
    results = tuple(_result(outcome, alpha) for outcome in outcomes)
    failed: dict[str, list[Outcome]] = {}
    for outcome, result in zip(outcomes, results, strict=True):
        if result.status == "failed":
            failed.setdefault(outcome.check, []).append(outcome)
    return results, tuple(_finding(group, alpha) for group in failed.values())


def _result(outcome: Outcome, alpha: float) -> CheckResult:
    if outcome.is_skipped:
        status = "skipped"
    elif outcome.failure is not None or (outcome.p_value is not None and outcome.p_value < alpha):
        status = "failed"
    elif outcome.is_note:
        status = "noted"
    else:
        status = "passed"
    bias = None
    if outcome.num_cells is not None and not outcome.is_skipped:
        bias = evidence.smallest_bias(outcome.num_trials, outcome.num_cells, alpha)
    return CheckResult(
        outcome.check,
        outcome.problem,
        status,  # type: ignore[arg-type]
        outcome.num_trials,
        outcome.detail or outcome.message,
        outcome.p_value,
        bias,
    )


def _finding(failed: list[Outcome], alpha: float) -> Finding:
    problems = tuple(dict.fromkeys(outcome.problem for outcome in failed))
    worst = failed[0]
    message = worst.failure or worst.message
    return Finding(worst.check, worst.problem, message, problems, dict(worst.example))
