"""How many of J drafts are accepted at a position, given the token that the target emits there.

Block efficiency is that of the target's own text, and the tokens of a text tell about the
acceptances: a token that is accepted is an easy one. So an acceptance along a text is conditional
on its tokens. For K chains it is a Markov chain in the number J of active chains, because noise and
tests are fresh at every position. Its kernel is ``T[J, J'] = P(J' of J drafts equal the emitted
token | it is y)``, a row for every J of K. Each scheme has its own, in its file;
:mod:`gls_jax.exact.counting` says how they are derived.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import checks, schemes, work_shape
from gls_jax.exact.counting import LEAST_EMITTED
from gls_jax.loops import map_in_batches
from gls_jax.schemes.function_types import EmittedTokenKernel
from gls_jax.typing import LogProbs
from gls_jax.work_shape import WorkShape

__all__ = ["NAMES", "kernels"]


def _known_kernels() -> dict[str, EmittedTokenKernel]:
    exact = {name: schemes.get(name).exact for name in schemes.NAMES}
    return {name: known.kernel for name, known in exact.items() if known and known.kernel}


_KERNELS = _known_kernels()
NAMES: tuple[str, ...] = tuple(_KERNELS)
"""Schemes whose kernel is known."""


def kernels(log_p: LogProbs, log_q: LogProbs, *, scheme: str, num_drafts: int) -> np.ndarray:
    """``T[position, J, J']`` for J, J' = 0..K, given that the token of column 0 is emitted.

    Args:
        log_p, log_q: `[P, N]`, draft and target log-probabilities.
        scheme: one of :data:`NAMES`.
        num_drafts: `K`, chains of the round: the streams that `gls_strong` looks at.

    Returns:
        `f32[P, K + 1, K + 1]`; rows sum to 1.

    Raises:
        ValueError: a scheme whose kernel is not known.

    >>> import jax.numpy as jnp
    >>> from gls_jax.planner import conditional
    >>> log_p, log_q = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
    >>> conditional.kernels(log_p, log_q, scheme="naive", num_drafts=2)[0].tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]
    """
    checks.one_of(scheme, NAMES, "scheme")
    # The text can have a token that is impossible when its distribution is read again: rounding at
    # the edge of top-k. It counts as barely possible.
    log_q = jnp.asarray(log_q).at[:, 0].max(LEAST_EMITTED)
    found = _kernels(
        jnp.asarray(log_p),
        log_q,
        scheme=scheme,
        num_drafts=num_drafts,
        shape=work_shape.current(),
    )
    return np.asarray(found)


@partial(jax.jit, static_argnames=("scheme", "num_drafts", "shape"))
def _kernels(log_p, log_q, *, scheme: str, num_drafts: int, shape: WorkShape):
    def kernel(pair):
        log_p, log_q = pair
        return _KERNELS[scheme](log_p, log_q, num_drafts)

    positions_at_once = shape.kernel_positions_at_once(log_q.shape[-1])
    return jnp.clip(map_in_batches(kernel, (log_p, log_q), positions_at_once), 0, 1)
