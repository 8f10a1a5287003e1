"""The figures that follow from the counts of a run."""

import numpy as np

from gls_jax import decoding


def test_metrics_count_what_happened():
    accepted_by_round = [[2, 0, 2], [1, 1]]  # accepted drafts of each round, by request
    histogram = np.array([np.bincount(rounds, minlength=3) for rounds in accepted_by_round])
    metrics = decoding.Metrics(histogram, np.array([7, 4]), nodes=6, calls_per_round=2, rounds=3)
    accepted = np.concatenate(accepted_by_round)
    assert metrics.block_efficiency == metrics.mean_acceptance_length == 1 + accepted.mean()
    assert metrics.acceptance_histogram.tolist() == [0.2, 0.4, 0.4]
    assert metrics.acceptance_by_position.tolist() == [4 / 5, 2 / 4]
    assert metrics.target_calls.tolist() == [3, 2]
    assert metrics.draft_calls.tolist() == [6, 4]
