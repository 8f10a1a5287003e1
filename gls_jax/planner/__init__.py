"""Predicted speed of speculative decoding, for every scheme and draft shape.

Predictions combine distributions along texts (a dump) with costs measured on a machine:

* :mod:`gls_jax.planner.conditional`: distribution of the number of accepted drafts, given the text;
* :mod:`gls_jax.planner.rounds`: block efficiency, from rounds that follow one another;
* :class:`Costs`: seconds of the parts of a round, measured by :func:`measure`;
* :func:`plan`: predictions for all settings, the fastest first;
* :func:`measure_generation`: generation with a setting, measured, to compare with its prediction;
* :mod:`gls_jax.planner.pair_plan`: all of these for two models, with files.

Acceptance itself, without costs, is the subject of :mod:`gls_jax.studies` (many pairs, files) and
:mod:`gls_jax.trials` (one call).
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
