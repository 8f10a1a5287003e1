"""Gaussian sources: distributions, codec, estimators, Monte Carlo, and signals in files."""
