"""Signals in files: `.npy` arrays that are compressed, or decompressed with side information."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gls_jax.compression.container import Container
from gls_jax.compression.gaussian.gaussian_codec import GaussianCodec
from gls_jax.compression.gaussian.monte_carlo_distortion import distortion
from gls_jax.runs import files
from gls_jax.typing import Progress

__all__ = ["decompress_signal", "read_signal"]

_EXPECTED = "an .npy file of floats of shape [n]"


def read_signal(path: Path) -> np.ndarray:
    """The numbers of an `.npy` file, `f64[n]`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, shape or type, or values that are not finite.
    """
    array = files.read_array(path, _EXPECTED)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: expected {_EXPECTED}, got {array.dtype} of shape {list(array.shape)}"
        )
    with np.errstate(over="ignore"):  # a long double that becomes infinite is refused below
        array = array.astype(np.float64)
    # NaN and values that float32 cannot hold.
    is_finite = np.abs(array) <= np.finfo(np.float32).max
    if not is_finite.all():
        first_bad = int(np.argmin(is_finite))
        raise ValueError(
            f"{path}: expected finite float32 numbers, got {array[first_bad]} at {first_bad}"
        )
    return array


def decompress_signal(
    container: Container,
    side_path: Path,
    estimate_path: Path,
    *,
    decoder: int,
    estimator: str,
    source_path: Path | None = None,
    progress: Progress | None = None,
) -> tuple[int, dict[str, dict[str, float]]]:
    """Decode a container with side information from a file, and write the estimate, `f32[n]`.

    Args:
        container: of a Gaussian codec.
        side_path: `.npy` file of the decoder's side information.
        estimate_path: `.npy` file to write.
        decoder: `0..K - 1`.
        estimator: as for :meth:`GaussianCodec.decode`.
        source_path: `.npy` file of the source, to measure the distortion.
        progress: called with `(symbols done, n)`.

    Returns:
        The number of symbols and, if the source is known, both readings in decibels of
        `distortion` (of the estimate) and `zero_rate` (of side information alone).

    Raises:
        OSError: a file that cannot be read or written.
        ValueError: bad content; nothing is written.
    """
    codec, side = GaussianCodec.of(container), read_signal(side_path)
    source = None if source_path is None else read_signal(source_path)
    if source is not None and (len(source) != len(side) or not len(side)):
        raise ValueError(
            f"{source_path}: expected one value per symbol ({len(side)}), and at least one, "
            f"got {len(source)}"
        )
    # Decoding may take long, so a path that cannot be written is refused before.
    files.check_file(estimate_path)
    reconstruction = codec.decode(container, side, decoder, estimator=estimator, progress=progress)
    estimate = reconstruction.estimate
    estimate_path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(estimate_path, lambda file: np.save(file, estimate, allow_pickle=False))
    if source is None:
        return len(side), {}
    zero_rate = codec.joint_distribution.zero_rate(side)
    return len(side), {
        "distortion": _decibels(source, estimate),
        "zero_rate": _decibels(source, zero_rate),
    }


def _decibels(source: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    readings = distortion((estimate - source) ** 2)._asdict()
    return {name: float(reading.mean) for name, reading in readings.items()}
