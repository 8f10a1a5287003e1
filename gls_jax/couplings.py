"""Couplings: two parties hold `p` and `q`, share noise, and draw ONE sample each; how often do the samples agree?

Both marginals are exact (:func:`dart_protocol`: up to `epsilon / 2`); what differs is who must know what.

| coupling                 | what crosses between the parties   | `P(x = y)`                                    |
|--------------------------|------------------------------------|-----------------------------------------------|
| :func:`gumbel`           | nothing                            | ``sum_j q_j / M_j``                           |
| :func:`weighted_minhash` | nothing                            | ``sum_j m_j (1 + d_j) / (1 + TV)``            |
| :func:`dart_protocol`    | about ``2 log2 N`` bits on average | ``sum_j m_j = 1 - TV``, up to `epsilon / 2`   |
| :func:`maximal`          | `x` and all of `p`                 | ``sum_j m_j = 1 - TV``, the most there can be |

``m_j = min(p_j, q_j)``, ``d_j = |p_j - q_j|``, ``M_j = sum_i max(q_i, q_j p_i / p_j)``. The first two are never below
``(1 - TV) / (1 + TV)``, and without communication nothing more can be promised of all pairs (Daliri, Musco, Suresh
2024, arXiv 2408.07978).

A **race** gives each item a clock, see :mod:`gls_jax.races`. A **dart** is a point uniform on items x [0, 1]; the first
of a sequence of darts that lies under the curve `p` hits a sample of `p`. Of the darts under either curve, mass
``1 + TV``, those under both, mass ``1 - TV``, are both parties' choice.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.ratios import excess

__all__ = [
    "Coupled",
    "dart_protocol",
    "dart_protocol_bits",
    "first_dart",
    "gumbel",
    "gumbel_match",
    "maximal",
    "maximal_match",
    "minhash_match",
    "weighted_minhash",
]

_SHARED, _HELP = 0, 1  # streams of darts: everybody's, and those that Bob offers when the first was not his
_BLOCKS = 16, 4096  # fewest and most darts a step throws, N of them between; measured on XLA:CPU
_PATIENCE = 64  # a law goes without a dart among 64 N with probability e^-64; NaN, which never has one, ends there


class Coupled(NamedTuple):
    """One draw of a coupling.

    Attributes:
        x: `i32[]`, Alice's sample, of law `p`.
        y: `i32[]`, Bob's sample, of law `q`.
    """

    x: Int[Array, ""]
    y: Int[Array, ""]


def gumbel(key: PRNGKeyArray, log_p, log_q) -> Coupled:
    """Gumbel coupling: both parties run the same race, each under its own law.

    Each sample is a function of the key and of its own law. Daliri et al. 2024 (arXiv 2408.07978); list sampling with
    `K = 1`.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`gumbel_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, or shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> x, y = jax.vmap(lambda key: couplings.gumbel(key, log_p, log_q))(keys)
    >>> bool(abs((x == y).mean() - couplings.gumbel_match(log_p, log_q)) < 0.03)
    True
    """
    log_p, log_q = _laws(log_p, log_q)
    clocks = races.exponentials(key, 1, log_p.shape[0])[0]
    return Coupled(*(races.winner(races.arrivals(clocks, law)) for law in (log_p, log_q)))


def weighted_minhash(key: PRNGKeyArray, log_p, log_q) -> Coupled:
    """Weighted MinHash coupling: each party takes the first shared dart under its own curve.

    Each sample is a function of the key and of its own law, :func:`first_dart`. Daliri et al. 2024 (arXiv 2408.07978);
    the correlated sampling of Holenstein 2007.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`minhash_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, or shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> key = jax.random.key(0)
    >>> x, y = couplings.weighted_minhash(key, log_p, log_q)
    >>> bool(x == couplings.first_dart(key, log_p)) and bool(y == couplings.first_dart(key, log_q))
    True
    """
    _laws(log_p, log_q)
    return Coupled(first_dart(key, log_p), first_dart(key, log_q))


def first_dart(key: PRNGKeyArray, log_weights) -> Int[Array, ""]:
    """Item of the first shared dart under one curve: a party's own side of :func:`weighted_minhash`.

    Throws `N` darts on average, a block at a time: memory does not grow with their number.

    Args:
        key: one typed key; the darts are those of its stream 0.
        log_weights: log-probabilities `[N]`.

    Returns:
        `i32[]`, a sample of the law.

    Raises:
        ValueError: a key that is not one typed threefry key, or a law that is not `[N]`.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> int(couplings.first_dart(jax.random.key(0), jnp.log(jnp.array([0.0, 1.0, 0.0]))))
    1
    """
    checks.key(key)
    return _first_dart(key, checks.law(log_weights, "log_weights"))


def maximal(key: PRNGKeyArray, log_p, log_q) -> Coupled:
    """Maximal coupling: Bob keeps Alice's sample with probability ``min(1, q_x / p_x)``, else samples ``(q - p)+``.

    Agrees as often as any coupling can, at the price that Bob knows `x` and all of `p`. Speculative sampling with one
    draft (Leviathan et al. 2023, arXiv 2211.17192) is this coupling.

    Args:
        key: one typed key; `x` wins the race of stream 0, Bob's test and residual use private noise.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`maximal_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, or shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> x, y = jax.vmap(lambda key: couplings.maximal(key, log_p, log_q))(keys)
    >>> bool(abs((x == y).mean() - 0.6) < 0.03)
    True
    """
    log_p, log_q = _laws(log_p, log_q)
    x, _ = gumbel(key, log_p, log_q)
    # Test and residual must not share noise with the race that drew x: that biases y.
    test_key, residual_key = jax.random.split(races.private_key(key))
    p, q = races.weights(log_p), races.weights(log_q)
    keep = races.uniforms(test_key, 1)[0] * p[x] < q[x]
    residual = jnp.log(jnp.maximum(q - p, 0))
    # Where p = q rounding can reject and leave nothing that a race could draw: its winner would be item 0.
    residual = jnp.where(jnp.max(residual) < races.LIGHTEST, log_q, residual)
    clocks = races.exponentials(residual_key, 1, log_q.shape[0])[0]
    return Coupled(x, jnp.where(keep, x, races.winner(races.arrivals(clocks, residual))))


def gumbel_match(log_p, log_q) -> Float[Array, ""]:
    """Exact match probability of :func:`gumbel`: ``sum_j q_j / M_j`` over the items with `p_j > 0`.

    Equality case `K = 1` of the list matching lemma (Rowan, Phan, Khisti 2025, arXiv 2506.05632). `O(N log N)`,
    differentiable away from ties.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.4, 0.1], [0.4, 0.1, 0.2, 0.3]]))
    >>> [round(float(f(log_p, log_q)), 4) for f in (couplings.gumbel_match, couplings.minhash_match)]
    [0.581, 0.5143]
    """
    log_p, log_q = _laws(log_p, log_q)
    return jnp.minimum(jnp.sum(races.weights(log_q) / (1 + excess(log_p, log_q))), 1)


def minhash_match(log_p, log_q) -> Float[Array, ""]:
    """Exact match probability of :func:`weighted_minhash`: ``sum_j m_j (1 + |p_j - q_j|) / sum_j max(p_j, q_j)``.

    The first dart under either curve lies under both with probability ``(1 - TV) / (1 + TV)``, the bound of the
    literature (:func:`gls_jax.bounds.communication_free`). But where it lies under one curve only, on item `j`, the
    other party's later dart hits `j` too with probability ``m_j = min(p_j, q_j)``: ITEMS agree more often than darts.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[1.0, 0.0], [1e-9, 1.0]]))
    >>> f"{couplings.minhash_match(log_p, log_q):.3g}"
    '1e-09'
    """
    p, q = (races.weights(law) for law in _laws(log_p, log_q))
    low, high = jnp.minimum(p, q), jnp.maximum(p, q)
    return jnp.minimum(jnp.sum(low * (1 + high - low)) / jnp.sum(high), 1)


def maximal_match(log_p, log_q) -> Float[Array, ""]:
    """Exact match probability of :func:`maximal`: ``sum min(p, q) = 1 - TV``.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> round(float(couplings.maximal_match(log_p, log_q)), 4)
    0.6
    """
    p, q = (races.weights(law) for law in _laws(log_p, log_q))
    return jnp.minimum(jnp.sum(jnp.minimum(p, q)), 1)


def dart_protocol(key: PRNGKeyArray, log_p, log_q, epsilon: float) -> tuple[Coupled, Int[Array, ""]]:
    """Nearly maximal coupling for few bits: each party knows its own law only, and they talk about shared darts.

    1. Alice sends the index of her first dart under `p` in stream 0; its item is `x`. Bob answers one bit: does it lie
       under `q` too? If so ``y = x``, which happens with probability ``1 - TV``.
    2. If not, Bob sends the index of each dart under `q` in stream 1, one by one, and Alice answers each with one bit;
       the first that does not lie under `p` is `y`, a sample of ``(q - p)+ / TV``. That takes ``1 / TV`` darts, but
       only with probability `TV`: one dart on average.

    Indices are sent as the darts passed over since the last message, a geometric number, in a Rice code with
    ``b = ceil(log2(N ln 2))`` low bits: at most ``b + 2`` on average, so about ``2 b + 6`` bits a run. Two caps:

    * ``C = ceil(N ln(2 / epsilon))`` darts a message. Alice has none among them with probability at most `epsilon / 2`;
      then she says so with the longest codeword and both fall back on :func:`gumbel`, `x` and `y` of exact laws. For
      Bob the same word says that `C` darts passed, and he goes on. So no message is longer than
      :func:`dart_protocol_bits` ``= log2 N + log2(1 / epsilon) + O(1)``.
    * ``D = ceil(2 N / (e epsilon))`` darts of stream 1. Bob runs out of them with probability ``TV (1 - TV / N)^D <=
      N / (e D) <= epsilon / 2``; then he takes a sample of all of `q`.

    Hence `x` has law `p` exactly, `y` has law `q` up to `epsilon / 2` in total variation, and ``P(x = y)`` lies within
    `epsilon / 2` of ``1 - TV``. Every message and the mean are ``O(log(N / epsilon))`` bits. The worst case of the
    TOTAL is not, and no cap makes it so: once step 1 fails the rounds are geometric with mean ``1 / TV``, so stopping
    after `R` of them loses up to ``max TV (1 - TV)^R``, about ``1 / (e R)``: `R` must be of order ``1 / epsilon``.

    The construction is ours, after Daliri et al. 2024 (arXiv 2408.07978), who state ``O(log(N / epsilon))`` bits.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.
        epsilon: what the caps may cost, a Python float within (0, 1); ``N / epsilon`` at most about 2.9e9.

    Returns:
        :class:`Coupled`, and `bits i32[]`: all that crossed in this run, in both directions.

    Raises:
        ValueError: `epsilon` out of range, a key that is not one typed threefry key, or shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> (x, y), bits = jax.vmap(lambda key: couplings.dart_protocol(key, log_p, log_q, 0.01))(keys)
    >>> bool(abs((x == y).mean() - 0.6) < 0.03), bool(bits.mean() < 10)
    (True, True)
    """
    checks.key(key)
    log_p, log_q = _laws(log_p, log_q)
    return _dart_protocol(key, log_p, log_q, _code(log_p.shape[0], epsilon))


def dart_protocol_bits(num_items: int, epsilon: float) -> int:
    """Length of the longest message of :func:`dart_protocol`, its escape: ``floor(C / 2^b) + 1 + b`` bits.

    >>> from gls_jax import couplings
    >>> [couplings.dart_protocol_bits(n, 1e-3) for n in (1, 10, 50_000)]
    [9, 13, 22]
    """
    code = _code(checks.count(num_items, "num_items"), epsilon)
    return code.length(code.reach)


class _Code(NamedTuple):
    """Rice code of the darts passed over, `0..reach`, of which `reach` is the escape; `budget`: darts of stream 1."""

    low_bits: int
    reach: int
    budget: int

    def length(self, passed):
        return (passed >> self.low_bits) + 1 + self.low_bits


def _code(num_items: int, epsilon: float) -> _Code:
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        got = repr(epsilon) if isinstance(epsilon, (int, float, str)) else type(epsilon).__name__
        raise ValueError(f"epsilon: expected a Python float strictly between 0 and 1, got {got}")
    budget = math.ceil(2 * num_items / (math.e * epsilon))
    if budget + _BLOCKS[1] >= 2**31:
        raise ValueError(f"epsilon: expected num_items / epsilon of at most 2.9e9, got {num_items / epsilon:.2g}")
    low_bits = max(0, math.ceil(math.log2(num_items * math.log(2))))
    return _Code(low_bits, math.ceil(num_items * math.log(2 / epsilon)), budget)


def _laws(log_p, log_q):
    return checks.same_items(checks.law(log_p, "log_p"), checks.law(log_q, "log_q"))


@jax.jit
def _first_dart(key, log_weights) -> Int[Array, ""]:
    num_items = log_weights.shape[0]
    curve, most = races.weights(log_weights), min(_PATIENCE * num_items, 2**31 - 1 - _BLOCKS[1])
    return _first_under(races.stream_key(key, _SHARED), curve, most)[1]


def _first_under(key, curve: Float[Array, " N"], most: int):
    """Number, item and height of the first dart under the curve, or of dart number `most` where none before it is."""
    num_items = curve.shape[0]
    numbers = _block(num_items)

    def throw(state):
        start, _ = state
        items, heights = races.darts(key, start, numbers.size, num_items)
        found = jnp.min(jnp.where(heights < _of(curve, items), start + numbers, most))
        return start + numbers.size, jnp.minimum(found, most)

    state = jnp.int32(0), jnp.int32(most)
    _, number = jax.lax.while_loop(lambda state: (state[0] < most) & (state[1] == most), throw, state)
    items, heights = races.darts(key, number, 1, num_items)
    return number, items[0], heights[0]


def _first_refused(key, p: Float[Array, " N"], q: Float[Array, " N"], code: _Code, wanted):
    """Number and item of the first dart under `q` and not under `p`, and the bits of step 2; where wanted at all."""
    num_items, escape = p.shape[0], code.length(code.reach)
    numbers = _block(num_items)

    def throw(state):
        start, _, begun, bits = state  # begun: the dart after the last that Bob sent
        items, heights = races.darts(key, start, numbers.size, num_items)
        at = start + numbers
        under_q = (heights < _of(q, items)) & (at < code.budget)
        found = jnp.min(jnp.where(under_q & (heights >= _of(p, items)), at, code.budget))
        sent = under_q & (at <= found)
        after = jax.lax.cummax(jnp.where(sent, at + 1, begun))
        passed = at - jnp.concatenate([begun[None], after[:-1]])
        message = passed // code.reach * escape + code.length(passed % code.reach) + 1  # one bit is Alice's answer
        return start + numbers.size, found, after[-1], bits + jnp.sum(jnp.where(sent, message, 0), dtype=jnp.int32)

    start = jnp.where(wanted, 0, code.budget).astype(jnp.int32)
    state = start, jnp.int32(code.budget), start, jnp.int32(0)
    searching = lambda state: (state[0] < code.budget) & (state[1] == code.budget)  # noqa: E731
    _, number, begun, bits = jax.lax.while_loop(searching, throw, state)
    silence = jnp.where(number == code.budget, -(-(code.budget - begun) // code.reach), 0)  # escapes up to the end
    return number, races.darts(key, number, 1, num_items)[0][0], bits + silence * escape


@partial(jax.jit, static_argnames="code")
def _dart_protocol(key, log_p, log_q, code: _Code) -> tuple[Coupled, Int[Array, ""]]:
    p, q = races.weights(log_p), races.weights(log_q)
    passed, x, height = _first_under(races.stream_key(key, _SHARED), p, code.reach)
    escaped = passed == code.reach
    common = ~escaped & (height < q[x])
    wanted = ~escaped & ~common
    number, fresh, help_bits = _first_refused(races.stream_key(key, _HELP), p, q, code, wanted)
    spare = gumbel(races.private_key(key), log_p, log_q)
    y = jnp.where(common, x, jnp.where(wanted & (number < code.budget), fresh, spare.y))
    bits = code.length(passed) + ~escaped + help_bits
    return Coupled(jnp.where(escaped, spare.x, x), y), bits


def _block(num_items: int) -> Int[Array, " B"]:
    return jnp.arange(min(max(num_items, _BLOCKS[0]), _BLOCKS[1]), dtype=jnp.int32)


def _of(curve: Float[Array, " N"], items: Int[Array, " B"]) -> Float[Array, " B"]:
    return curve.at[items].get(mode="promise_in_bounds")
