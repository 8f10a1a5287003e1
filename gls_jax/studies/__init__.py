"""Studies: acceptance of many pairs of distributions, in resumable runs that write files.

* :func:`run`: exact and simulated acceptance and bounds for every scheme, pair and list length,
  averaged over the pairs, as a CSV file;
* :func:`position_acceptance`: exact acceptance at every position of a dump.

How this differs from its neighbours:

* :mod:`gls_jax.trials` simulates arrays in memory in one call, and writes no files;
* :mod:`gls_jax.runs` is the machinery that studies use for files, resuming and processes;
* the folder `experiments` of a clone reproduces the figures and tables of papers.
"""

from gls_jax.studies.acceptance_study import Row, Study, run
from gls_jax.studies.position_study import BRACKETED, Mean, position_acceptance

__all__ = ["BRACKETED", "Mean", "Row", "Study", "position_acceptance", "run"]
