"""Draft-selection schemes, one file each, one interface: `propose`, `verify`, exact `acceptance`.

>>> import jax, jax.numpy as jnp
>>> from gls_jax import schemes
>>> scheme = schemes.get("gls")
>>> key, (log_p, log_q) = jax.random.key(0), jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
>>> drafts = scheme.propose(key, log_p, 4)
>>> token = scheme.verify(key, drafts, log_p, log_q)  # the same key: that is the coupling
>>> drafts.shape, token.shape
((4,), ())
"""

from gls_jax.schemes import (
    block,
    gls,
    gls_strong,
    gumbel_topk,
    minhash,
    naive,
    optimal,
    poisson,
    single,
    specinfer,
    specinfer_wor,
    spectr,
    traversal,
    weighted_importance,
)
from gls_jax.schemes.draft_tree import Path, Tree, branching, chain_draft_index, chains
from gls_jax.schemes.scheme import Scheme

__all__ = [
    "NAMES",
    "PATH_NAMES",
    "Path",
    "Scheme",
    "Tree",
    "branching",
    "chain_draft_index",
    "chains",
    "get",
]

_SHARED = (gls, gls_strong, poisson, gumbel_topk, minhash, naive)  # from shared randomness alone
_TESTED = (
    single,
    specinfer,
    specinfer_wor,
    spectr,
    weighted_importance,
    optimal,
)  # with the draft law
_PATHS = (block, traversal)

NAMES: tuple[str, ...] = tuple(module.SCHEME.name for module in _SHARED + _TESTED)
"""The token-level schemes: `propose`, `verify`, `acceptance`, and through the generic walk
`verify_tree`.
"""
PATH_NAMES: tuple[str, ...] = tuple(module.SCHEME.name for module in _PATHS)
"""Schemes that verify whole paths: `propose` and `verify_tree` only."""

_SCHEMES = {module.SCHEME.name: module.SCHEME for module in _SHARED + _TESTED + _PATHS}


def get(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ValueError: an unknown name; the error lists the known ones.

    >>> from gls_jax import schemes
    >>> schemes.get("poisson").invariance
    'strong'
    """
    if not isinstance(name, str) or name not in _SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(_SCHEMES)}, got {name!r}")
    return _SCHEMES[name]
