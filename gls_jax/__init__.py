"""Gumbel-max list sampling in JAX: couplings, speculative decoding and compression.

One party draws a list of K samples of `p`, another one sample of `q`, from shared random numbers.
The library computes how often the sample is in the list, and uses such couplings. Its parts, from
the mathematics to the uses (mathematics -> estimates -> uses -> data and tools):

Mathematics:

* :mod:`gls_jax.races`: the shared exponential noise, and races between categories;
* :mod:`gls_jax.couplings`: two parties that draw one sample each;
* :mod:`gls_jax.sampling`: Gumbel-max list sampling, a list of drafts and one target sample;
* :mod:`gls_jax.rejection`: recursive rejection sampling, the base of all ratio tests;
* :mod:`gls_jax.schemes`: draft-selection schemes: drafts, verification, exact acceptance;
* :mod:`gls_jax.exact`: computations that exact acceptances share, and batches of pairs;
* :mod:`gls_jax.bounds`: lower bounds on acceptance, and the optimum over all schemes;
* :mod:`gls_jax.decomposition`: the canonical decomposition of Khisti et al.;
* :mod:`gls_jax.losses`: exact acceptance as a training loss.

Estimates:

* :mod:`gls_jax.trials`: Monte Carlo acceptance, in one call, for arrays in memory;
* :mod:`gls_jax.estimate`: the result type of a simulation.

Uses:

* :mod:`gls_jax.decoding`: batched speculative decoding with any scheme and any model;
* :mod:`gls_jax.adapters`: the rejection samplers of JAX serving engines, by any scheme;
* :mod:`gls_jax.models`: language models and image models, loaded or trained;
* :mod:`gls_jax.compression`: lossy compression with side information at K decoders;
* :mod:`gls_jax.conformance`: whether anybody's verifier is lossless.

Data and tools:

* :mod:`gls_jax.distributions`: pairs `(p, q)`: random, from files, or from models along texts;
* :mod:`gls_jax.studies`: acceptance of many pairs, in resumable runs that write files;
* :mod:`gls_jax.planner`: predicted speed of decoding, for every scheme and draft shape;
* :mod:`gls_jax.runs`: the machinery of long runs: files, resuming, several processes;
* :mod:`gls_jax.work_shape`: how much is computed at the same time, on a CPU and on an accelerator;
* :mod:`gls_jax.cli`: the command `gls-jax`.

Internal helpers: :mod:`gls_jax.checks` (input validation), :mod:`gls_jax.extras` (optional
packages), :mod:`gls_jax.loops` and :mod:`gls_jax.typing`.

>>> import jax, jax.numpy as jnp, gls_jax
>>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
>>> round(float(gls_jax.schemes.get("gls").acceptance(log_p, log_q, 4)), 4)
0.9583
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gls_jax import (
    bounds,
    couplings,
    decomposition,
    exact,
    losses,
    races,
    rejection,
    schemes,
    trials,
    work_shape,
)
from gls_jax.checks import check_log_probs
from gls_jax.sampling import ListSample, list_sample

if TYPE_CHECKING:
    from gls_jax import (
        adapters,
        compression,
        conformance,
        decoding,
        distributions,
        models,
        planner,
        runs,
        studies,
    )

__version__ = "0.1.0"
__all__ = [
    "ListSample",
    "adapters",
    "bounds",
    "check_log_probs",
    "compression",
    "conformance",
    "couplings",
    "decoding",
    "decomposition",
    "distributions",
    "exact",
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
    "work_shape",
]


def __getattr__(name: str) -> ModuleType:
    # Imported on first use: `models` needs flax, and the others take time to import.
    if name in __all__:
        return import_module(f"gls_jax.{name}")
    raise AttributeError(f"module 'gls_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
