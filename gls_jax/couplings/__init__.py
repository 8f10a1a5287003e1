"""Couplings: two parties hold `p` and `q`, share noise, and draw one sample each.

The question is how often the two samples agree. Both marginals are exact (:func:`dart_protocol`: up
to `epsilon / 2`). The couplings differ in the messages between the parties.

| coupling                 | communication              | `P(x = y)`                            |
|--------------------------|----------------------------|---------------------------------------|
| :func:`gumbel`           | none                       | ``sum_j q_j / M_j``                   |
| :func:`weighted_minhash` | none                       | ``sum_j m_j (1 + d_j) / (1 + TV)``    |
| :func:`dart_protocol`    | ``2 log2 N`` bits, roughly | ``1 - TV``, up to `epsilon / 2`       |
| :func:`maximal`          | `x` and all of `p`         | ``sum_j m_j = 1 - TV``, the highest   |

``m_j = min(p_j, q_j)``, ``d_j = |p_j - q_j|``, ``M_j = sum_i max(q_i, q_j p_i / p_j)``. The first
two are never below ``(1 - TV) / (1 + TV)``. Without communication no coupling can promise more for
all pairs (Daliri, Musco, Suresh 2024, arXiv 2408.07978).

* :mod:`gls_jax.couplings.couple`: the couplings without communication, and :func:`maximal`;
* :mod:`gls_jax.couplings.few_bits`: :func:`dart_protocol`.

A **race** gives each category exponential noise, see :mod:`gls_jax.races`. A **dart** is a point
uniform on categories x [0, 1]. The first dart of a sequence that lies under the curve `p` gives a
sample of `p`, its category. Both curves together cover the mass ``1 + TV``, and their intersection
``1 - TV``: a dart in the intersection is chosen by both parties.
"""

from gls_jax.couplings.couple import (
    Coupled,
    first_dart,
    gumbel,
    gumbel_match,
    maximal,
    maximal_match,
    minhash_match,
    weighted_minhash,
)
from gls_jax.couplings.few_bits import dart_protocol, dart_protocol_bits

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
