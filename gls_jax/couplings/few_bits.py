"""A nearly maximal coupling for few bits of communication."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.couplings.couple import (
    MOST_DARTS,
    SHARED_STREAM,
    Coupled,
    dart_offsets,
    first_under,
    gather_in_bounds,
    same_race,
)
from gls_jax.loops import varying_like
from gls_jax.typing import LogProbs

__all__ = ["dart_protocol", "dart_protocol_bits"]

_OFFERED_STREAM = 1  # of the darts that Bob offers in the second step


def dart_protocol(
    key: PRNGKeyArray,
    log_p: LogProbs,
    log_q: LogProbs,
    epsilon: float,
) -> tuple[Coupled, Int[Array, ""]]:
    """Nearly maximal coupling for few bits: the parties talk about shared darts.

    Each party knows only its own distribution.

    1. Alice sends the number of her first dart under `p` in stream 0; its category is `x`. Bob
       answers one bit: does it lie under `q` too? If so ``y = x``. That happens with probability
       ``1 - TV``.
    2. If not, Bob sends the number of each dart under `q` in stream 1, one by one, and Alice
       answers each with one bit. The first that does not lie under `p` is `y`, a sample of ``(q -
       p)+ / TV``. This takes ``1 / TV`` darts, but only with probability `TV`: one dart on average.

    A number is sent as the count of darts passed over since the last message. It is geometric, and
    a Rice code with ``b = ceil(log2(N ln 2))`` low bits needs at most ``b + 2`` bits for it on
    average. So a run takes about ``2 b + 6`` bits. There are two caps:

    * ``C = ceil(N ln(2 / epsilon))`` darts per message. Alice has none among them with probability
      at most `epsilon / 2`. Then she sends the longest codeword, the escape, and both parties
      use :func:`gumbel` instead, which gives exact samples `x` and `y`. From Bob the escape means
      that `C` darts were passed over, and he continues. So no message is longer than
      :func:`dart_protocol_bits` ``= log2 N + log2(1 / epsilon) + O(1)``.
    * ``D = ceil(2 N / (e epsilon))`` darts of stream 1. Bob uses all of them up with probability
      ``TV (1 - TV / N)^D <= N / (e D) <= epsilon / 2``. Then he takes a sample of all of `q`.

    Hence `x` has distribution `p` exactly, `y` has distribution `q` up to `epsilon / 2` in total
    variation, and ``P(x = y)`` is within `epsilon / 2` of ``1 - TV``. Every message and the mean
    total are ``O(log(N / epsilon))`` bits. The worst total is longer, and no cap can change that.
    Once step 1 fails, the number of rounds is geometric with mean ``1 / TV``, so stopping after `R`
    rounds loses up to ``max TV (1 - TV)^R``, about ``1 / (e R)``: `R` must be of order ``1 /
    epsilon``.

    The construction is ours, after Daliri et al. 2024 (arXiv 2408.07978), who state ``O(log(N /
    epsilon))`` bits.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.
        epsilon: twice the error that each cap may cause, a Python float within (0, 1); ``N /
            epsilon`` at most about 2.9e9.

    Returns:
        :class:`Coupled`, and `bits i32[]`: all bits sent in this run, in both directions.

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
    log_p, log_q = checks.problem(log_p, log_q)
    code = _rice_code(log_p.shape[0], epsilon)
    return work_shape.compiled(_dart_protocol, (key, log_p, log_q), (code,))


def dart_protocol_bits(num_categories: int, epsilon: float) -> int:
    """Length of the longest message of :func:`dart_protocol`: ``floor(C / 2^b) + 1 + b`` bits.

    >>> from gls_jax import couplings
    >>> [couplings.dart_protocol_bits(n, 1e-3) for n in (1, 10, 50_000)]
    [9, 13, 22]
    """
    code = _rice_code(checks.count(num_categories, "num_categories"), epsilon)
    return code.length(code.escape)


class _RiceCode(NamedTuple):
    """Rice code of the number of darts passed over.

    Attributes:
        low_bits: `b`.
        escape: `C`; the numbers sent are `0..C - 1`, and `C` itself is the escape.
        budget: `D`, darts of stream 1 that may be used.
    """

    low_bits: int
    escape: int
    budget: int

    def length(self, num_passed):
        """Bits of a codeword: the quotient in unary, then the low bits."""
        return (num_passed >> self.low_bits) + 1 + self.low_bits


def _rice_code(num_categories: int, epsilon: float) -> _RiceCode:
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        got = repr(epsilon) if isinstance(epsilon, (int, float, str)) else type(epsilon).__name__
        raise ValueError(f"epsilon: expected a Python float strictly between 0 and 1, got {got}")
    # The budget of stream 1 must fit into the numbers that darts have.
    if 2 * num_categories / (math.e * epsilon) > MOST_DARTS - 1:
        raise ValueError(
            f"epsilon: expected num_categories / epsilon of at most 2.9e9, "
            f"got {num_categories / epsilon:.2g}"
        )
    return _RiceCode(
        low_bits=max(0, math.ceil(math.log2(num_categories * math.log(2)))),
        escape=math.ceil(num_categories * math.log(2 / epsilon)),
        budget=math.ceil(2 * num_categories / (math.e * epsilon)),
    )


def _second_step(key, p, q, code: _RiceCode, is_needed):
    """The first dart under `q` and not under `p`: its number `i32[]`, category and bits sent.

    The number is `code.budget` if no dart before that one is accepted. Where the step is not
    needed, no bits are sent.
    """
    num_categories = p.shape[0]
    escape_length = code.length(code.escape)
    offsets = dart_offsets(num_categories)

    def is_searching(state):
        start, accepted, _, _ = state
        return (start < code.budget) & (accepted == code.budget)

    def throw(state):
        # `next_number`: of the dart after the last one that Bob sent.
        start, _, next_number, bits = state
        numbers = start + offsets
        categories, heights = races.darts(key, start, offsets.size, num_categories)
        is_under_q = heights < gather_in_bounds(q, categories)
        is_under_q = is_under_q & (numbers < code.budget)
        is_above_p = heights >= gather_in_bounds(p, categories)
        accepted = jnp.min(jnp.where(is_under_q & is_above_p, numbers, code.budget))
        # Bob sends his darts up to the first one that Alice accepts.
        is_sent = is_under_q & (numbers <= accepted)
        next_numbers = jax.lax.cummax(jnp.where(is_sent, numbers + 1, next_number))
        num_passed = numbers - jnp.concatenate([next_number[None], next_numbers[:-1]])
        # An escape for every `C` darts passed over, the codeword of the rest, and Alice's answer.
        escape_bits = num_passed // code.escape * escape_length
        message_bits = escape_bits + code.length(num_passed % code.escape) + 1
        new_bits = jnp.sum(jnp.where(is_sent, message_bits, 0), dtype=jnp.int32)
        return start + offsets.size, accepted, next_numbers[-1], bits + new_bits

    start = jnp.where(is_needed, 0, code.budget).astype(jnp.int32)
    state = (start, jnp.int32(code.budget), start, jnp.int32(0))
    state = varying_like(state, key, p, q)
    _, number, next_number, bits = jax.lax.while_loop(is_searching, throw, state)
    # Bob has passed over the rest of the budget: he sends escapes up to its end.
    num_escapes = -(-(code.budget - next_number) // code.escape)
    num_escapes = jnp.where(number == code.budget, num_escapes, 0)
    categories, _ = races.darts(key, number, 1, num_categories)
    return number, categories[0], bits + num_escapes * escape_length


def _dart_protocol(key, log_p, log_q, code: _RiceCode) -> tuple[Coupled, Int[Array, ""]]:
    p = races.weights(log_p)
    q = races.weights(log_q)
    # Step 1: Alice's first dart, and whether Bob can take it.
    shared_key = races.stream_key(key, SHARED_STREAM)
    num_passed, x, height = first_under(shared_key, p, code.escape)
    has_escaped = num_passed == code.escape
    is_common = ~has_escaped & (height < q[x])
    # Step 2: Bob's darts, until Alice accepts one.
    is_needed = ~has_escaped & ~is_common
    offered_key = races.stream_key(key, _OFFERED_STREAM)
    number, accepted, step_bits = _second_step(offered_key, p, q, code, is_needed)
    # Samples for the two cases in which the darts run out.
    fallback = same_race(races.private_key(key), log_p, log_q)
    y = jnp.where(is_needed & (number < code.budget), accepted, fallback.y)
    y = jnp.where(is_common, x, y)
    x = jnp.where(has_escaped, fallback.x, x)
    bits = code.length(num_passed) + (~has_escaped).astype(jnp.int32) + step_bits
    return Coupled(x=x, y=y), bits
