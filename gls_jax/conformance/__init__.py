"""Whether anybody's verifier is lossless: :func:`check` tries it on problems that many fail on.

A verifier takes drafts and two distributions, and emits a token of the target distribution. Name
its kind, and the kit draws problems, calls the verifier, compares what it emits with what is known,
and returns a :class:`Report`. ``gls-jax check MODULE:FUNCTION --kind token`` is the same as a
command: exit code 0 where nothing was found, 1 where something was, 2 for bad input.

**Kinds.** Arrays are float32 and int32; probabilities sum to 1 along the last axis `N`.

``kind="token"``
    ``(key, drafts i32[K], draft_probs f32[K, N], target_probs f32[N]) -> token i32[]``.
    Draft `k` was drawn from row `k` of `draft_probs`, independently. All rows are the same unless
    the call says ``diverse=True``.

``kind="ragged"``
    ``(key, draft_tokens i32[T], num_draft_tokens i32[B], draft_probs f32[T, N],
    target_probs f32[T, N], bonus_tokens i32[B]) -> i32[B, W]``, the rejection sampler of a serving
    engine. Request `b` has one chain of ``num_draft_tokens[b]`` drafts, and the chains stand one
    behind the other, so that ``T = sum(num_draft_tokens)``. Row `t` of `target_probs` is the
    target's distribution at the place of draft `t`. The answer holds the emitted tokens of each
    request, then -1: accepted drafts, then one token of the residual or, if all drafts are
    accepted, the bonus token. `W` is at least ``max(num_draft_tokens) + 1``. A request without
    drafts emits its bonus token.

``kind="tree"``
    ``(key, tokens i32[n], parents i32[n], draft_probs f32[n, N], target_probs f32[n + 1, N]) ->
    i32[W]``. Parents come before children and are numbered as in :class:`gls_jax.schemes.Tree`: 0
    is the root, ``i + 1`` is node `i`. Node `i` was drawn from row `i` of `draft_probs`, the same
    row for all siblings, who are independent given their parent (``without_replacement=True``:
    distinct). Row 0 of `target_probs` is the target's distribution at the root, row ``i + 1`` the
    one after node `i`. The answer holds the tokens of the accepted path and the token after it,
    then -1; `W` is at least the depth of the tree plus 1.

``kind="shared"``
    An object that proposes with the noise that verifies: ``propose(key, log_p f32[N], num_drafts)
    -> i32[K]`` and ``verify(key, drafts i32[K], log_p f32[N], log_q f32[N]) -> token i32[]``, under
    the same key. Every :class:`gls_jax.schemes.Scheme` is one. Its attributes `invariance`,
    `max_drafts` and `acceptance` are read where it has them.

**Randomness.** `key` is a typed JAX key, a different one for each call. With ``noise="seed"`` the
verifier gets a Python int below 2^31 instead, for NumPy and torch. The kit draws its drafts with
noise of its own.

**JAX or not.** The kit tries ``jax.jit(jax.vmap(verifier))`` first. What cannot be traced is called
in a Python loop, one problem a call, with NumPy arrays: fewer trials, and the report says what they
could have seen. A `ragged` verifier is never lifted by `vmap`: each call holds many requests.

**Adapters.** Another signature takes five lines. A sampler in NumPy that takes a generator:

>>> import numpy as np
>>> from gls_jax import conformance
>>> def verify(seed, drafts, draft_probs, target_probs):
...     rng = np.random.default_rng(seed)
...     p, q, draft = draft_probs[0], target_probs, drafts[0]
...     if rng.random() * p[draft] < q[draft]:
...         return draft
...     return rng.choice(len(q), p=q / q.sum(dtype=float))  # wrong: not the residual
>>> report = conformance.check(
...     verify, kind="token", seed=0, noise="seed", max_drafts=1, problems=("plain",)
... )
>>> report.passed
False
>>> report.findings[0].check
'emitted distribution'

and one in torch, ``sample(drafts, p, q, generator)``::

    def verify(seed, drafts, draft_probs, target_probs):
        generator = torch.Generator().manual_seed(seed)
        arrays = (torch.from_numpy(a) for a in (drafts, draft_probs, target_probs))
        return sample(*arrays, generator).item()

**What a finding is.** Wrong answers are findings: a biased token, a wrong shape, a token outside of
the vocabulary, an exception, an answer that the key does not determine, a call that takes too long.
A wrong call of :func:`check` itself is a `ValueError`.

**How sure it is.** The statistical tests of a whole report call a lossless verifier biased with
probability at most :data:`FALSE_FAILURE_RATE`, whatever the number of trials: see
:mod:`gls_jax.conformance.goodness_of_fit`. A biased verifier passes if its bias is smaller than
what the report says it would have seen. The other checks hold a verifier to the contract of its
kind: its answer is a function of its arguments, it is lossless for drafts from the same key too
(unless ``separate_keys=True``), it answers in time, and its claims are true.
"""

from gls_jax.conformance.checking import KINDS, PROBLEMS, check
from gls_jax.conformance.goodness_of_fit import FALSE_FAILURE_RATE
from gls_jax.conformance.report import CheckResult, Finding, Report

__all__ = ["FALSE_FAILURE_RATE", "KINDS", "PROBLEMS", "CheckResult", "Finding", "Report", "check"]
