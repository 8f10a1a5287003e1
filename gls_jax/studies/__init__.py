"""Acceptance of many pairs of distributions: exact, simulated and bounds, in resumable runs."""

from gls_jax.studies.acceptance_study import Row, Study, run, write_csv
from gls_jax.studies.position_study import BRACKETED, Mean, position_acceptance

__all__ = ["BRACKETED", "Mean", "Row", "Study", "position_acceptance", "run", "write_csv"]
