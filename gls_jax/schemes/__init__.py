"""Draft-selection schemes, one file each.

A drafter proposes K tokens, drawn from a cheap distribution `p`; the target emits one token, whose
distribution is exactly `q`. A scheme couples the two, so that the emitted token is often among the
drafts.

**One position of GLS.** There are three tokens, and K = 2 drafts.

>>> import jax, jax.numpy as jnp, numpy as np
>>> from gls_jax import races, schemes
>>> key, p, q = jax.random.key(10), np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])

From the key both sides draw the same exponentials S, a row for each draft (a *stream*).

>>> noise = np.asarray(races.exponentials(key, num_streams=2, num_items=3))
>>> print(noise.round(2))
[[2.03 1.24 2.01]
 [0.04 0.65 1.74]]

The drafter divides by `p`. The smallest S / p of a stream wins its race and is a sample of `p`: the
drafts are token 2 and token 0.

>>> print((noise / p).round(1))
[[10.2  4.1  4. ]
 [ 0.2  2.2  3.5]]

The target divides by `q` and takes the smallest S / q of both streams, a sample of `q`: token 0. It
is the second draft, which is accepted. Neither side has read the sample of the other.

>>> print((noise / q).round(1))
[[ 3.4  4.1 20.1]
 [ 0.1  2.2 17.4]]

The scheme does the same with log-probabilities, and knows how often it succeeds over all keys.

>>> gls, log_p, log_q = schemes.get("gls"), jnp.log(p), jnp.log(q)
>>> drafts = gls.propose(key, log_p, 2)
>>> drafts.tolist(), int(gls.verify(key, drafts, log_p, log_q))
([2, 0], 0)
>>> round(float(gls.acceptance(log_p, log_q, 2)), 3)
0.682

**The same position of SpecInfer**, a rejection scheme. The drafts are token 2 and token 0 again,
but the target reads `p` and draws private noise. It accepts token 2 with probability
``q_2 / p_2 = 0.2``. If it rejects, the residual of the target is ``(q - p)+ = (0.4, 0, 0)``,
normalised (1, 0, 0). The next draft is tested against that: token 0 is accepted with probability
``min(1, 1 / 0.2) = 1``. If all drafts are rejected, a sample of the residual is emitted.

**Adding a scheme.** Write a file ``gls_jax/schemes/my_scheme.py`` with

* ``propose(key, log_p, num_drafts)``, or import that of another scheme: `gls.propose` drafts
  independent samples, `gumbel_topk.propose` distinct ones, `topk.propose` the likeliest tokens;
* ``verify(key, drafts, log_p, log_q, active)``, which emits a sample of `q`;
* ``acceptance(log_p, log_q, num_drafts: tuple)``, the exact acceptance for each list length;
* ``SCHEME = Scheme(name="my_scheme", ..., propose_fn=propose,
  verification=TokenVerification(verify), exact=ExactAcceptance(acceptance))``;

and enter it in `_MODULES` below. :mod:`gls_jax.schemes.function_types` has the arguments of each
function, and the optional parts of a scheme. Trials, tree verification and decoding then work with
it, and the tests of every scheme run on it. ``tests/schemes/test_adding_a_scheme.py`` adds a scheme
from outside of the package.
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
    topk,
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

_MODULES = (
    # from shared randomness
    gls,
    gls_strong,
    poisson,
    gumbel_topk,
    minhash,
    naive,
    # without noise in the drafts
    topk,
    # by tests that read the draft probabilities
    single,
    specinfer,
    specinfer_wor,
    spectr,
    weighted_importance,
    optimal,
    # of whole paths
    block,
    traversal,
)
_SCHEMES = {module.SCHEME.name: module.SCHEME for module in _MODULES}

NAMES: tuple[str, ...] = tuple(name for name, scheme in _SCHEMES.items() if scheme.verifies_tokens)
"""The schemes that verify tokens; they have every method, `verify_tree` by a walk down the tree."""

PATH_NAMES: tuple[str, ...] = tuple(
    name for name, scheme in _SCHEMES.items() if not scheme.verifies_tokens
)
"""The schemes that verify whole paths: `propose` and `verify_tree` only."""


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
