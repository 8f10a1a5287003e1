"""What the exact acceptances of all schemes share.

The ratio order `q / p`, quadrature over a race's exponential noise, distributions of counts, trials
by inversion, and the evaluation of many pairs.
"""

from gls_jax.exact import batched, counting, inversion, quadrature, ratio_order

__all__ = ["batched", "counting", "inversion", "quadrature", "ratio_order"]
