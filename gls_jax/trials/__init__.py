"""Monte Carlo trials: how often the target's token is in the list, with standard errors.

* :func:`acceptance` for one pair of distributions, :func:`sweep` for many pairs and list lengths;
* :mod:`gls_jax.trials.trial_loop` counts accepted trials in bounded memory on all devices.
"""

from gls_jax.estimate import Estimate
from gls_jax.trials.monte_carlo import acceptance, sweep
from gls_jax.trials.monte_carlo import check_num_trials as check_num_trials
from gls_jax.trials.trial_loop import noise_per_trial as noise_per_trial

__all__ = ["Estimate", "acceptance", "sweep"]
