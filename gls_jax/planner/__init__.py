"""How fast speculative decoding will be: acceptance given the text, rounds along it, costs of this
machine.
"""

from gls_jax.planner.check import Measured, generated
from gls_jax.planner.costs import Costs, measure
from gls_jax.planner.plan import (
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
    "generated",
    "measure",
    "plan",
    "settings",
]
