"""`gls-jax decompress`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
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
    """What one decoder makes of compressed bytes with its side information; the blob says which
    codec made it.
    """

    blob: tyro.conf.Positional[Path]
    """What `gls-jax compress` wrote."""
    side: tyro.conf.Positional[Path]
    """This decoder's side information: an .npy file of n floats; of images their crops, or whole
    images, of whose left half a crop is drawn: an .npy array, a .png file or a folder of them.
    """
    estimate: tyro.conf.Positional[Path]
    """The .npy file to write, float32; of images also a .png file or a folder for them."""
    decoder: int
    """Which decoder, 0 to K - 1: it has a stream of clocks of its own."""
    estimator: str = "trusting"
    """signal: `trusting`: as if its candidate were the encoder's; `posterior_mean`: averaged over
    all it may have meant.
    """
    source: Path | None = None
    """What was compressed, to print the distortion."""
    model: Path | None = None
    """images: the folder of the model that they were compressed with."""
    crop_seed: int = 0
    """images: of the crops, where the side information is whole images."""
    json: bool = False
    """Print one JSON object instead of text."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Read, decode, write, print."""
        from gls_jax.runs import files

        blob = self.blob.read_bytes()
        if self._kind(blob) == "images":
            return self._run_images(blob)
        codec, side = self._codec(blob), signals.read(self.side)
        source = None if self.source is None else self._source(len(side))
        files.check_file(self.estimate)
        with progress() as report:
            show = partial(report, "symbols decoded")
            estimate = codec.decode(
                blob, side, self.decoder, estimator=self.estimator, progress=show
            ).estimate
        self.estimate.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.estimate, lambda file: np.save(file, estimate, allow_pickle=False))
        distortions = {}
        if source is not None:
            control = codec.source_law.zero_rate(side)
            distortions = {
                "distortion": _distortion(source, estimate),
                "zero_rate": _distortion(source, control),
            }
        if self.json:
            done = {"estimate": str(self.estimate), "count": len(side), "decoder": self.decoder}
            print(json.dumps(done | {"estimator": self.estimator} | distortions))
        else:
            print(
                f"{self.estimate}: {len(side):,} symbols of decoder {self.decoder}, {self.estimator} estimate"
            )
            if distortions:
                Console().print(_table(**distortions))

    def _run_images(self, blob: bytes) -> None:
        from gls_jax.cli import pictures
        from gls_jax.compression import datasets

        codec = self._image_codec(blob)
        codec.code.stream(self.decoder)
        side = pictures.sides(self.side, codec.model, self.decoder, self.crop_seed)
        source = None if self.source is None else pictures.sources(self.source, codec.model)
        if source is not None and (len(source) != len(side) or not len(side)):
            raise ValueError(
                f"{self.source}: expected one image for each of {len(side)}, and one at least"
            )
        datasets.check_place(self.estimate, len(side), codec.model.source_shape[2])
        with progress() as report:
            show = partial(report, "images decoded")
            estimate = codec.decode(blob, side, self.decoder, progress=show).estimate
        datasets.write_images(self.estimate, estimate)
        figures = {} if source is None else _image_distortion(source, estimate)
        if self.json:
            print(
                json.dumps(
                    {"estimate": str(self.estimate), "count": len(side), "decoder": self.decoder}
                    | figures
                )
            )
        else:
            print(f"{self.estimate}: {len(side):,} images of decoder {self.decoder}")
            if figures:
                print(
                    "squared error {squared_error:.4f} (pixels in [-1, 1]), PSNR {psnr:.2f} dB".format(
                        **figures
                    )
                )

    def _image_codec(self, blob: bytes):
        from gls_jax.compression import ImageCodec
        from gls_jax.models import load_vae

        if self.model is None:
            raise ValueError(
                f"{self.blob}: holds images; expected --model, the folder of the model that made it"
            )
        model = load_vae(self.model)
        return self._named(lambda: ImageCodec.of(blob, model))

    def _codec(self, blob: bytes):
        from gls_jax.compression import GaussianCodec

        if self.model is not None:
            raise ValueError(f"{self.blob}: holds a signal, which needs no --model")
        return self._named(lambda: GaussianCodec.of(blob))

    def _kind(self, blob: bytes) -> str:
        from gls_jax.compression import container

        return self._named(lambda: container.unpack(blob)).kind

    def _named(self, read: Callable):
        """What `read` gives; its errors with the name of the file."""
        try:
            return read()
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

    found = distortion(
        np.maximum((estimate - source) ** 2, 1e-30)
    )  # a constant signal may be met exactly
    return {name: float(figure.mean) for name, figure in found._asdict().items()}


def _image_distortion(source: np.ndarray, estimate: np.ndarray) -> dict[str, float]:
    error = float(np.mean(np.square(estimate - source)))
    return {
        "squared_error": error,
        "psnr": float(10 * np.log10(2**2 / max(error, 1e-12))),
    }  # a range of 2


def _table(distortion: dict[str, float], zero_rate: dict[str, float]) -> Table:
    table = Table(title="distortion in dB")
    for name in ("", "this decoder", "side information alone"):
        table.add_column(name, justify="right" if name else "left")
    for name, title in (
        ("mean_of_db", "mean of 10 log10 error²"),
        ("db_of_mean", "10 log10 of mean error²"),
    ):
        table.add_row(title, f"{distortion[name]:.3f}", f"{zero_rate[name]:.3f}")
    return table
