"""Couplings: two parties hold `p` and `q`, share noise, and draw ONE sample each; how often do the
samples agree?

Both marginals are exact (:func:`dart_protocol`: up to `epsilon / 2`); what differs is who must know
what.

| coupling                 | what crosses between the parties   | `P(x = y)`                                    |
|--------------------------|------------------------------------|-----------------------------------------------|
| :func:`gumbel`           | nothing                            | ``sum_j q_j / M_j``                           |
| :func:`weighted_minhash` | nothing                            | ``sum_j m_j (1 + d_j) / (1 + TV)``            |
| :func:`dart_protocol`    | about ``2 log2 N`` bits on average | ``sum_j m_j = 1 - TV``, up to `epsilon / 2`   |
| :func:`maximal`          | `x` and all of `p`                 | ``sum_j m_j = 1 - TV``, the most there can be |

``m_j = min(p_j, q_j)``, ``d_j = |p_j - q_j|``, ``M_j = sum_i max(q_i, q_j p_i / p_j)``. The first
two are never below ``(1 - TV) / (1 + TV)``, and without communication nothing more can be promised
of all pairs (Daliri, Musco, Suresh 2024, arXiv 2408.07978).

A **race** gives each item a clock, see :mod:`gls_jax.races`. A **dart** is a point uniform on items
x [0, 1]; the first of a sequence of darts that lies under the curve `p` hits a sample of `p`. Of
the darts under either curve, mass ``1 + TV``, those under both, mass ``1 - TV``, are both parties'
choice.
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
from gls_jax.couplings.protocol import dart_protocol, dart_protocol_bits

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
