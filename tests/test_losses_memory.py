"""Memory of a training step on the exact acceptance, by XLA's own analysis.

The step is compiled as users compile it, and never run.
"""

import jax
import jax.numpy as jnp
import pytest

from gls_jax import losses


@pytest.mark.parametrize(("name", "most"), [("poisson", 1e9), ("gls", 1e9), ("gumbel_topk", 2e9)])
def test_memory_of_a_training_step_does_not_grow_with_the_batch(name, most):
    """Temporaries of value and gradient for 256 positions of a vocabulary."""
    logits = jax.ShapeDtypeStruct((256, 49_152), jnp.float32)
    step = jax.jit(
        jax.value_and_grad(
            lambda draft, target: jnp.mean(
                losses.acceptance(draft, target, scheme=name, num_drafts=4)
            )
        )
    )
    used = step.lower(logits, logits).compile().memory_analysis().temp_size_in_bytes
    assert used < most
    # The gradient, and the intermediate values of four positions.
    assert used < 4 * 256 * 49_152 + 1.5e8
