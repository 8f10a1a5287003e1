"""Input validation of the public functions, with errors of one line.

Shapes, types and static sizes are always checked, under `jit` while it traces, and raise
``ValueError``. Values of arrays are checked where they are known, once per public call, see
:func:`check_log_probs`. Arrays that the library computes itself, such as residuals or the weights
of a race, are passed to internal functions and not checked.

* :mod:`gls_jax.checks.arrays`: conversion to JAX arrays of a supported type;
* :mod:`gls_jax.checks.drafts`: draft tokens and trees;
* :mod:`gls_jax.checks.log_probabilities`: values of log-probabilities and logits;
* :mod:`gls_jax.checks.prng_keys`: random keys;
* :mod:`gls_jax.checks.problems`: shapes of draft and target log-probabilities;
* :mod:`gls_jax.checks.sizes`: sizes, indices, names and devices.
"""

from gls_jax.checks.arrays import (
    as_array,
    flags,
    floats,
    has_shape,
    integers,
    known_values,
    on_device,
)
from gls_jax.checks.drafts import (
    alive_rows,
    alive_tokens,
    possible_tokens,
    siblings_share_distribution,
    tokens,
)
from gls_jax.checks.log_probabilities import check_log_probs, logits, values
from gls_jax.checks.prng_keys import key, keys
from gls_jax.checks.problems import (
    distribution,
    distribution_rows,
    draft_distributions,
    host_probabilities,
    list_problem,
    problem,
    same_categories,
    within_unit,
)
from gls_jax.checks.sizes import active_of, count, counts, index, local_devices, one_of, seed

__all__ = ["check_log_probs"]
