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

from gls_jax.schemes import gls, gls_strong, gumbel_topk, naive, poisson, single
from gls_jax.schemes.base import Scheme

__all__ = ["NAMES", "Scheme", "get"]

_SCHEMES = {module.SCHEME.name: module.SCHEME for module in (gls, gls_strong, poisson, gumbel_topk, single, naive)}

NAMES: tuple[str, ...] = tuple(_SCHEMES)
"""Every registered name."""


def get(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ValueError: an unknown name; the error lists the known ones.

    >>> from gls_jax import schemes
    >>> schemes.get("poisson").invariance
    'strong'
    """
    if not isinstance(name, str) or name not in _SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(NAMES)}, got {name!r}")
    return _SCHEMES[name]
