"""How fast speculative decoding will be: acceptance given the text, rounds along it, costs of this machine."""

from gls_jax.planner.costs import Costs, measure
from gls_jax.planner.plan import NAMES, Choice, Setting, efficiencies, from_acceptances, plan, settings

__all__ = ["NAMES", "Choice", "Costs", "Setting", "efficiencies", "from_acceptances", "measure", "plan", "settings"]
