"""A conversation that makes the coupling maximal, for few bits."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.couplings.couple import (
    MOST_DARTS,
    SHARED,
    Coupled,
    block,
    both_laws,
    first_under,
    of,
    same_race,
)
from gls_jax.loops import varying_like
from gls_jax.typing import LogProbs

__all__ = ["dart_protocol", "dart_protocol_bits"]

_HELP = 1  # the stream of the darts that Bob offers when the first was not his


def dart_protocol(
    key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, epsilon: float
) -> tuple[Coupled, Int[Array, ""]]:
    """Nearly maximal coupling for few bits: each party knows its own law only, and they talk about
    shared darts.

    1. Alice sends the index of her first dart under `p` in stream 0; its item is `x`. Bob answers
       one bit: does it lie under `q` too? If so ``y = x``, which happens with probability ``1 -
       TV``.
    2. If not, Bob sends the index of each dart under `q` in stream 1, one by one, and Alice answers
       each with one bit; the first that does not lie under `p` is `y`, a sample of ``(q - p)+ /
       TV``. That takes ``1 / TV`` darts, but only with probability `TV`: one dart on average.

    Indices are sent as the darts passed over since the last message, a geometric number, in a Rice
    code with ``b = ceil(log2(N ln 2))`` low bits: at most ``b + 2`` on average, so about ``2 b +
    6`` bits a run. Two caps:

    * ``C = ceil(N ln(2 / epsilon))`` darts a message. Alice has none among them with probability at
      most `epsilon / 2`; then she says so with the longest codeword and both fall back on
      :func:`gumbel`, `x` and `y` of exact laws. For Bob the same word says that `C` darts passed,
      and he goes on. So no message is longer than :func:`dart_protocol_bits` ``= log2 N + log2(1 /
      epsilon) + O(1)``.
    * ``D = ceil(2 N / (e epsilon))`` darts of stream 1. Bob runs out of them with probability ``TV
      (1 - TV / N)^D <= N / (e D) <= epsilon / 2``; then he takes a sample of all of `q`.

    Hence `x` has law `p` exactly, `y` has law `q` up to `epsilon / 2` in total variation, and ``P(x
    = y)`` lies within `epsilon / 2` of ``1 - TV``. Every message and the mean are ``O(log(N /
    epsilon))`` bits. The worst case of the TOTAL is not, and no cap makes it so: once step 1 fails
    the rounds are geometric with mean ``1 / TV``, so stopping after `R` of them loses up to ``max
    TV (1 - TV)^R``, about ``1 / (e R)``: `R` must be of order ``1 / epsilon``.

    The construction is ours, after Daliri et al. 2024 (arXiv 2408.07978), who state ``O(log(N /
    epsilon))`` bits.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.
        epsilon: what the caps may cost, a Python float within (0, 1); ``N / epsilon`` at most about
            2.9e9.

    Returns:
        :class:`Coupled`, and `bits i32[]`: all that crossed in this run, in both directions.

    Raises:
        ValueError: `epsilon` out of range, a key that is not one typed threefry key, shapes that do
            not fit, or what :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> (x, y), bits = jax.vmap(lambda key: couplings.dart_protocol(key, log_p, log_q, 0.01))(keys)
    >>> bool(abs((x == y).mean() - 0.6) < 0.03), bool(bits.mean() < 10)
    (True, True)
    """
    checks.key(key)
    log_p, log_q = both_laws(log_p, log_q)
    return _dart_protocol(key, log_p, log_q, _code(log_p.shape[0], epsilon))


def dart_protocol_bits(num_items: int, epsilon: float) -> int:
    """Length of the longest message of :func:`dart_protocol`, its escape: ``floor(C / 2^b) + 1 +
    b`` bits.

    >>> from gls_jax import couplings
    >>> [couplings.dart_protocol_bits(n, 1e-3) for n in (1, 10, 50_000)]
    [9, 13, 22]
    """
    code = _code(checks.count(num_items, "num_items"), epsilon)
    return code.length(code.reach)


class _Code(NamedTuple):
    """Rice code of the darts passed over, `0..reach`, of which `reach` is the escape; `budget`:
    darts of stream 1.
    """

    low_bits: int
    reach: int
    budget: int

    def length(self, passed):
        return (passed >> self.low_bits) + 1 + self.low_bits


def _code(num_items: int, epsilon: float) -> _Code:
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        got = repr(epsilon) if isinstance(epsilon, (int, float, str)) else type(epsilon).__name__
        raise ValueError(f"epsilon: expected a Python float strictly between 0 and 1, got {got}")
    if 2 * num_items / (math.e * epsilon) > MOST_DARTS - 1:
        raise ValueError(
            f"epsilon: expected num_items / epsilon of at most 2.9e9, got {num_items / epsilon:.2g}"
        )
    budget = math.ceil(2 * num_items / (math.e * epsilon))
    low_bits = max(0, math.ceil(math.log2(num_items * math.log(2))))
    return _Code(low_bits, math.ceil(num_items * math.log(2 / epsilon)), budget)


def _first_refused(key, p: Float[Array, " N"], q: Float[Array, " N"], code: _Code, wanted):
    """Number and item of the first dart under `q` and not under `p`, and the bits of step 2; where
    wanted at all.
    """
    num_items, escape = p.shape[0], code.length(code.reach)
    numbers = block(num_items)

    def throw(state):
        start, _, begun, bits = state  # begun: the dart after the last that Bob sent
        items, heights = races.darts(key, start, numbers.size, num_items)
        at = start + numbers
        under_q = (heights < of(q, items)) & (at < code.budget)
        found = jnp.min(jnp.where(under_q & (heights >= of(p, items)), at, code.budget))
        sent = under_q & (at <= found)
        after = jax.lax.cummax(jnp.where(sent, at + 1, begun))
        passed = at - jnp.concatenate([begun[None], after[:-1]])
        message = (
            passed // code.reach * escape + code.length(passed % code.reach) + 1
        )  # one bit is Alice's answer
        return (
            start + numbers.size,
            found,
            after[-1],
            bits + jnp.sum(jnp.where(sent, message, 0), dtype=jnp.int32),
        )

    start = jnp.where(wanted, 0, code.budget).astype(jnp.int32)
    state = varying_like((start, jnp.int32(code.budget), start, jnp.int32(0)), key, p, q)
    searching = lambda state: (state[0] < code.budget) & (state[1] == code.budget)  # noqa: E731
    _, number, begun, bits = jax.lax.while_loop(searching, throw, state)
    silence = jnp.where(
        number == code.budget, -(-(code.budget - begun) // code.reach), 0
    )  # escapes up to the end
    return number, races.darts(key, number, 1, num_items)[0][0], bits + silence * escape


@partial(jax.jit, static_argnames="code")
def _dart_protocol(key, log_p, log_q, code: _Code) -> tuple[Coupled, Int[Array, ""]]:
    p, q = races.weights(log_p), races.weights(log_q)
    passed, x, height = first_under(races.stream_key(key, SHARED), p, code.reach)
    escaped = passed == code.reach
    common = ~escaped & (height < q[x])
    wanted = ~escaped & ~common
    number, fresh, help_bits = _first_refused(races.stream_key(key, _HELP), p, q, code, wanted)
    spare = same_race(races.private_key(key), log_p, log_q)
    y = jnp.where(common, x, jnp.where(wanted & (number < code.budget), fresh, spare.y))
    bits = code.length(passed) + (~escaped).astype(jnp.int32) + help_bits
    return Coupled(jnp.where(escaped, spare.x, x), y), bits
