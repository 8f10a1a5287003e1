"""Shape annotations are checked in the rooms behind the door; at the door bad input must reach our own errors."""

from importlib.util import find_spec

from jaxtyping import install_import_hook

collect_ignore = [] if find_spec("torch") else ["peers"]  # never skipped: `make peers` names the folder and fails there

SCHEMES = """block gls gls_strong gumbel_topk minhash naive optimal poisson single specinfer specinfer_wor
spectr traversal weighted_importance"""
CHECKED = [
    "gls_jax.decoding.drafting",
    "gls_jax.decoding.engine",
    "gls_jax.decoding.margin",
    "gls_jax.decoding.sampling",
    "gls_jax.decoding.tree",
    "gls_jax.models.layers",
    "gls_jax.models.transformer",
    "gls_jax.models.vae",
    "gls_jax.quadrature",
    "gls_jax.ratios",
    "gls_jax.rejection",
    "gls_jax.sampling",
    *(f"gls_jax.schemes.{name}" for name in SCHEMES.split()),
]

install_import_hook(CHECKED, "beartype.beartype")
