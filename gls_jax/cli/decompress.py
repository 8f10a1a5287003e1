"""`gls-jax decompress`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from gls_jax.cli import signals
from gls_jax.cli.console import progress

__all__ = ["Decompress"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decompress:
    """What one decoder makes of compressed bytes with its side information; the blob says which codec made it."""

    blob: tyro.conf.Positional[Path]
    """What `gls-jax compress` wrote."""
    side: tyro.conf.Positional[Path]
    """This decoder's side information: an .npy file of n floats."""
    estimate: tyro.conf.Positional[Path]
    """The .npy file to write, float32."""
    decoder: int
    """Which decoder, 0 to K - 1: it has a stream of clocks of its own."""
    estimator: str = "trusting"
    """`trusting`: as if its candidate were the encoder's; `posterior_mean`: averaged over all it may have meant."""
    source: Path | None = None
    """The .npy file that was compressed, to print the distortion."""
    json: bool = False
    """Print one JSON object instead of text."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Read, decode, write, print."""
        from gls_jax import files

        blob = self.blob.read_bytes()
        codec, side = self._codec(blob), signals.read(self.side)
        source = None if self.source is None else self._source(len(side))
        files.check_file(self.estimate)
        with progress() as report:
            show = partial(report, "symbols decoded")
            estimate = codec.decode(blob, side, self.decoder, estimator=self.estimator, progress=show).estimate
        self.estimate.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.estimate, lambda file: np.save(file, estimate, allow_pickle=False))
        distortions = {}
        if source is not None:
            control = codec.source_law.zero_rate(side)
            distortions = {"distortion": _distortion(source, estimate), "zero_rate": _distortion(source, control)}
        if self.json:
            done = {"estimate": str(self.estimate), "count": len(side), "decoder": self.decoder}
            print(json.dumps(done | {"estimator": self.estimator} | distortions))
        else:
            print(f"{self.estimate}: {len(side):,} symbols of decoder {self.decoder}, {self.estimator} estimate")
            if distortions:
                Console().print(_table(**distortions))

    def _codec(self, blob: bytes):
        from gls_jax.compression import GaussianCodec

        try:
            return GaussianCodec.of(blob)
        except ValueError as error:
            raise ValueError(f"{self.blob}: {error}") from None

    def _source(self, count: int) -> np.ndarray:
        assert self.source is not None
        source = signals.read(self.source)
        if len(source) != count or not count:
            raise ValueError(
                f"{self.source}: expected one value a symbol ({count}), and one at least, got {len(source)}"
            )
        return source


def _distortion(source: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    from gls_jax.compression.simulation import distortion

    found = distortion(np.maximum((estimate - source) ** 2, 1e-30))  # a constant signal may be met exactly
    return {name: float(figure.mean) for name, figure in found._asdict().items()}


def _table(distortion: dict[str, float], zero_rate: dict[str, float]) -> Table:
    table = Table(title="distortion in dB")
    for name in ("", "this decoder", "side information alone"):
        table.add_column(name, justify="right" if name else "left")
    for name, title in (("mean_of_db", "mean of 10 log10 error²"), ("db_of_mean", "10 log10 of mean error²")):
        table.add_row(title, f"{distortion[name]:.3f}", f"{zero_rate[name]:.3f}")
    return table
