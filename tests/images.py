"""Small images whose left halves tell something of their right halves, and a model that learns them in seconds."""

import numpy as np

from gls_jax.models import VaeConfig

TRAINING = {"beta": 0.1, "epochs": 15, "seed": 3, "batch": 32, "learning_rate": 3e-3}


def ramps(count, seed=0):
    """`f32[count, 8, 8, 1]`: the right half falls or rises from top to bottom, the left one's level tells about how."""
    rng = np.random.default_rng(seed)
    slope = rng.uniform(-0.9, 0.9, (count, 1, 1, 1))
    level = 0.5 * slope + 0.3 * rng.uniform(-1, 1, slope.shape)
    right = (np.arange(8) >= 4)[:, None]
    return np.where(right, slope * np.linspace(-1, 1, 8)[:, None, None], level).astype(np.float32)


CONFIG = VaeConfig.of_images(
    ramps(1), crop=3, latent=2, channels=8, hidden=32, features=16, dropout=0.0
)
