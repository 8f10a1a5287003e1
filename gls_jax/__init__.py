"""Gumbel-max list sampling in JAX: a race, a scheme, an acceptance.

>>> import jax, jax.numpy as jnp, gls_jax
>>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
>>> round(float(gls_jax.schemes.get("gls").acceptance(log_p, log_q, 4)), 4)
0.9583
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gls_jax import bounds, couplings, decomposition, losses, races, rejection, schemes, trials
from gls_jax.checks import check_log_probs
from gls_jax.sampling import ListSample, list_sample

if TYPE_CHECKING:
    from gls_jax import compression, decoding, distributions, models, planner, runs, studies

__version__ = "0.1.0"
__all__ = [
    "ListSample",
    "bounds",
    "check_log_probs",
    "compression",
    "couplings",
    "decoding",
    "decomposition",
    "distributions",
    "list_sample",
    "losses",
    "models",
    "planner",
    "races",
    "rejection",
    "runs",
    "schemes",
    "studies",
    "trials",
]


def __getattr__(name: str) -> ModuleType:
    # Imported on first use: `models` needs flax, and the others take time to import.
    if name in __all__:
        return import_module(f"gls_jax.{name}")
    raise AttributeError(f"module 'gls_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
