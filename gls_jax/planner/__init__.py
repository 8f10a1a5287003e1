"""How fast speculative decoding will be, predicted from distributions along texts and from costs.

* :mod:`gls_jax.planner.conditional`: how many drafts are accepted, given the text;
* :mod:`gls_jax.planner.rounds`: block efficiency, from rounds that follow one another;
* :class:`Costs`: what the parts of a round cost on this machine;
* :func:`plan`: all of it together, the fastest setting first;
* :func:`measure_generation`: the same setting, measured.
"""

from gls_jax.planner.costs import Costs, measure
from gls_jax.planner.measured_generation import Measured, measure_generation
from gls_jax.planner.predictions import (
    NAMES,
    Choice,
    Setting,
    check_acceptances,
    efficiencies,
    from_acceptances,
    plan,
    settings,
)

__all__ = [
    "NAMES",
    "Choice",
    "Costs",
    "Measured",
    "Setting",
    "check_acceptances",
    "efficiencies",
    "from_acceptances",
    "measure",
    "measure_generation",
    "plan",
    "settings",
]
