"""Priorities by which the scheme `optimal` selects one of several i.i.d. drafts.

:mod:`gls_jax.schemes.optimal` has the derivation. Tokens lie on [0, 1] in ratio order, token `i` on
an interval of length `p_i`. A draft has a uniform *place* `u` in its token's interval. With some
probability the draft takes the place of a partner instead. The result is its *priority*, and the
draft with the largest priority is selected.

``rho_i = r_i / p_i`` is the density at which the places of token `i` are to be selected, and ``m(u)
= K u^{K-1}`` is that of the largest of K places. Places with ``rho > m`` are called *raised*,
because their partners are higher, and the others *lowered*. `rho` is constant on an interval and
`m` increases, so the raised places of a token come before its lowered ones. *Area* is the integral
of ``|rho - m|``. A raised place and a lowered one are partners if the raised area below the one is
the lowered area below the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax import work_shape
from gls_jax.exact.ratio_order import RatioOrder, cumulative, search
from gls_jax.loops import varying_like
from gls_jax.schemes.array_types import Drafts, Scalar, Vector

__all__ = [
    "ClipRatios",
    "Exchanges",
    "Layout",
    "clip_ratios",
    "draw_priorities",
    "exchanges",
    "lay_out",
]


class ClipRatios(NamedTuple):
    """The two values between which the scheme clips ``q / p``."""

    sigma: Scalar
    tau: Scalar


class _Places(NamedTuple):
    """The raised places of each token, or the lowered ones, in ratio order. Every field is `[N]`.

    Attributes:
        start: where they begin.
        length: how much of the token's interval they fill.
        area_below: their area in all tokens before.
        area: their area in this token.
    """

    start: Vector
    length: Vector
    area_below: Vector
    area: Vector


class Layout(NamedTuple):
    """The tokens of one problem on [0, 1], in ratio order.

    Attributes:
        num_drafts: `K`, as a float.
        p: `f[N]`, the lengths of the intervals.
        density: `f[N]`, `rho`.
        raised, lowered: the places of each token.
    """

    num_drafts: Scalar
    p: Vector
    density: Vector
    raised: _Places
    lowered: _Places


def clip_ratios(ranked: RatioOrder, num_drafts: Scalar) -> ClipRatios:
    """Sigma and tau: with ``f = 1 - optimum``, ``sum (sigma p - q)+ = f = sum (q - tau p)+``.

    Args:
        ranked: the problem in ratio order.
        num_drafts: `K`, a float of at least 1, which may be traced.
    """
    is_possible = ranked.p > 0
    # f is the largest p(A)^K - q(A) of a prefix A; the empty one has 0.
    prob_all_inside = jnp.minimum(ranked.mass, 1) ** num_drafts
    gap_of_prefix = jnp.where(is_possible, prob_all_inside - cumulative(ranked.q), 0)
    f = jnp.maximum(jnp.max(gap_of_prefix), 0)

    # Sigma: sum (u p - q)+ is `excess_t` at the ratio of index t, with slope `mass_t` above it.
    index = jnp.sum(is_possible & (ranked.excess <= f)) - 1
    sigma = ranked.ratio[index] + (f - ranked.excess[index]) / ranked.mass[index]

    # Tau: sum (q - u p)+ falls in u. At the ratio of index t it is q - u p of the tokens from t on.
    # Tau is at most the first ratio at which it is at most f, so all tokens from there are clipped.
    q_from = cumulative(ranked.q, reverse=True)
    p_from = cumulative(ranked.p, reverse=True)
    mass_above = q_from - jnp.where(is_possible, ranked.ratio, 0) * p_from
    num_before = jnp.sum(is_possible & (mass_above > f))
    index = jnp.minimum(num_before, jnp.sum(is_possible) - 1)
    tau = (q_from[index] - f) / p_from[index]
    # It is at least the ratio before. Rounding of f, divided by a tiny p, may say otherwise.
    tau = jnp.maximum(tau, jnp.where(num_before > 0, ranked.ratio[num_before - 1], 0))

    # At u = 1 both sums are the total variation, which is at least f, but for rounding.
    return ClipRatios(jnp.minimum(sigma, 1), jnp.maximum(tau, 1))


def lay_out(ranked: RatioOrder, ratios: ClipRatios, num_drafts: Scalar) -> Layout:
    """The tokens on [0, 1], for the ratios that :func:`clip_ratios` returns."""
    density = jnp.where(ranked.p > 0, jnp.clip(ranked.ratio, ratios.sigma, ratios.tau), 0)
    start = jnp.concatenate([jnp.zeros(1, ranked.p.dtype), ranked.mass[:-1]])

    # Places from the one with m = rho on are lowered. With a single draft both are 1 everywhere.
    root = 1 / jnp.maximum(num_drafts - 1, 1)
    crossing = (density / num_drafts) ** root
    raised_length = jnp.clip(crossing - start, 0, ranked.p)
    middle = start + raised_length
    lowered_length = ranked.p - raised_length
    raised_area = _signed_area(start, raised_length, density, num_drafts)
    lowered_area = -_signed_area(middle, lowered_length, density, num_drafts)
    return Layout(
        num_drafts=num_drafts,
        p=ranked.p,
        density=density,
        raised=_places(start, raised_length, raised_area),
        lowered=_places(middle, lowered_length, lowered_area),
    )


def _places(start: Vector, length: Vector, area: Vector) -> _Places:
    area = jnp.maximum(area, 0)  # not so by rounding
    zero = jnp.zeros(1, area.dtype)
    area_below = jnp.concatenate([zero, cumulative(area)[:-1]])
    return _Places(start=start, length=length, area_below=area_below, area=area)


class Exchanges(NamedTuple):
    """The places of drafts, and their exchanges. Every field is `[n]`.

    Attributes:
        place: of each draft.
        partner: the place of its partner.
        needed, possible: the exchange has probability ``needed / possible``, both of which are at
            least 0 up to rounding.
    """

    place: Float[Array, " n"]
    partner: Float[Array, " n"]
    needed: Float[Array, " n"]
    possible: Float[Array, " n"]


def draw_priorities(
    layout: Layout, indices: Drafts, uniforms: Float[Array, "2 K"]
) -> Float[Array, " K"]:
    """The priorities of the drafts: K independent uniforms if the drafts are samples of `p`.

    Args:
        layout: of the problem.
        indices: of the drafts in ratio order.
        uniforms: private noise, a row for the places and one for the exchanges.
    """
    drawn = exchanges(layout, indices, uniforms[0])
    is_exchanged = uniforms[1] * drawn.possible < drawn.needed
    return jnp.where(is_exchanged, drawn.partner, drawn.place)


def exchanges(layout: Layout, indices: Int[Array, " n"], uniforms: Float[Array, " n"]) -> Exchanges:
    """The places of these tokens, given by indices in ratio order, and their exchanges."""
    num_drafts = layout.num_drafts
    density = layout.density[indices]
    own_raised = _of_tokens(layout.raised, indices)
    own_lowered = _of_tokens(layout.lowered, indices)

    # The place of each draft, and the area of its kind below it.
    from_start = uniforms * layout.p[indices]
    is_raised = from_start < own_raised.length
    own = _select(is_raised, own_raised, own_lowered)
    distance = jnp.where(is_raised, from_start, from_start - own_raised.length)
    place = own.start + distance
    sign = jnp.where(is_raised, 1, -1).astype(density.dtype)
    own_area = sign * _signed_area(own.start, distance, density, num_drafts)
    area_below = own.area_below + own_area

    # The partner is of the other kind, with the same area below.
    raised_indices = _index_with_area(layout.raised, area_below)
    lowered_indices = _index_with_area(layout.lowered, area_below)
    partner_indices = jnp.where(is_raised, lowered_indices, raised_indices)
    partner = _select(
        is_raised,
        _of_tokens(layout.lowered, lowered_indices),
        _of_tokens(layout.raised, raised_indices),
    )
    partner_density = layout.density[partner_indices]
    partner_distance = _distance_with_area(partner, partner_density, -sign, area_below, num_drafts)
    partner_place = partner.start + partner_distance

    # The probability (rho(u) - m(u)) / (m(v) - m(u)). For a lowered place both are negative.
    own_m = _density_of_largest(place, num_drafts)
    partner_m = _density_of_largest(partner_place, num_drafts)
    return Exchanges(
        place=place,
        partner=partner_place,
        needed=sign * (density - own_m),
        possible=sign * (partner_m - own_m),
    )


def _of_tokens(places: _Places, indices: Int[Array, " n"]) -> _Places:
    return jax.tree.map(lambda field: field[indices], places)


def _select(condition: Bool[Array, " K"], if_true: _Places, if_false: _Places) -> _Places:
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), if_true, if_false)


def _index_with_area(places: _Places, area_below: Float[Array, " K"]) -> Drafts:
    """The token in which the area below reaches these values."""
    index = search(places.area_below + places.area, area_below)
    # All of the area is smaller than `area_below` only by rounding.
    return jnp.minimum(index, places.area.shape[0] - 1)


def _distance_with_area(
    places: _Places,
    density: Float[Array, " K"],
    sign: Float[Array, " K"],
    area_below: Float[Array, " K"],
    num_drafts: Scalar,
) -> Float[Array, " K"]:
    """How far from its token's start the place lies that has this area below, by bisection."""
    wanted_area = area_below - places.area_below

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        is_too_low = sign * _signed_area(places.start, middle, density, num_drafts) < wanted_area
        return jnp.where(is_too_low, middle, low), jnp.where(is_too_low, high, middle)

    interval = (jnp.zeros_like(places.length), places.length)
    interval = varying_like(interval, places, density, area_below)
    num_steps = jnp.finfo(density.dtype).nmant + 2
    is_wide = work_shape.current().is_wide
    low, high = jax.lax.fori_loop(0, num_steps, halve, interval, unroll=is_wide)
    return (low + high) / 2


def _signed_area(
    start: Float[Array, " n"],
    distance: Float[Array, " n"],
    density: Float[Array, " n"],
    num_drafts: Scalar,
) -> Float[Array, " n"]:
    """The integral of ``rho - m`` over places from `start` on, as far as `distance`."""
    # The rise of u^K is start^K ((1 + distance / start)^K - 1). That keeps the digits of a short
    # distance, over which u^K grows by less than a factor of e. Over a longer one the difference
    # has its digits, and the product would be 0 times infinity for a large K.
    is_positive = start > 0
    growth = jnp.where(is_positive, distance, 0) / jnp.where(is_positive, start, 1)
    exponent = num_drafts * jnp.log1p(growth)
    is_short = is_positive & (exponent < 1)
    short_rise = start**num_drafts * jnp.expm1(jnp.where(is_short, exponent, 0))
    long_rise = (start + distance) ** num_drafts - start**num_drafts
    return density * distance - jnp.where(is_short, short_rise, long_rise)


def _density_of_largest(place: Float[Array, " K"], num_drafts: Scalar) -> Float[Array, " K"]:
    return num_drafts * place ** (num_drafts - 1)
