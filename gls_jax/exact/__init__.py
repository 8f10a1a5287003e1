"""Shared numerics of the exact formulas; the exact acceptances are in the files of the schemes.

* :mod:`gls_jax.exact.ratio_order`: categories sorted by ``q / p``, with the sums that every formula
  needs;
* :mod:`gls_jax.exact.quadrature`: integrals over exponential noise;
* :mod:`gls_jax.exact.counting`: distributions of counts;
* :mod:`gls_jax.exact.inversion`: Monte Carlo trials by inversion, without the noise of all
  categories;
* :mod:`gls_jax.exact.batched`: a function mapped over many pairs of distributions, in parallel.
"""

from gls_jax.exact import batched, counting, inversion, quadrature, ratio_order

__all__ = ["batched", "counting", "inversion", "quadrature", "ratio_order"]
