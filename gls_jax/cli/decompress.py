"""`gls-jax decompress`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Column, Table

from gls_jax.cli.console import print_json, progress

__all__ = ["Decompress"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decompress:
    """Decompress with the side information of one decoder; the blob says which codec made it."""

    blob: tyro.conf.Positional[Path]
    """The file that `gls-jax compress` wrote."""
    side: tyro.conf.Positional[Path]
    """This decoder's side information: an .npy file of n floats. For images their crops, or whole
    images, from whose left halves crops are drawn: an .npy array, a .png file or a folder of them.
    """
    estimate: tyro.conf.Positional[Path]
    """The .npy file to write, float32; for images also a .png file or a folder for them."""
    decoder: int
    """Index of the decoder, 0 to K - 1; each decoder has a separate stream of noise."""
    estimator: str = "plug_in"
    """Signals: `plug_in`, as if this decoder's candidate were the encoder's, or `posterior_mean`,
    averaged over all sources that would have sent this message.
    """
    source: Path | None = None
    """The compressed signal or images; if given, the distortion is printed."""
    model: Path | None = None
    """Images: the folder of the model that they were compressed with."""
    crop_seed: int = 0
    """Images: seed of the crops, if the side information is whole images."""
    json: bool = False
    """Print one JSON object instead of text."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Read, decode, write, print."""
        from gls_jax.compression.blob_files import read_blob

        # Unpacked once: codecs are built from the container, and decode it.
        container = read_blob(self.blob)
        # Both return figures for JSON, a text and, if the distortion is known, a table.
        decompress = self._images if container.kind == "images" else self._signal
        with progress() as report:
            figures, text, table = decompress(container, report)
        if self.json:
            print_json({"estimate": str(self.estimate), "decoder": self.decoder, **figures})
        else:
            print(f"{self.estimate}: {text}")
            if table is not None:
                Console().print(table)

    def _signal(self, container, report):
        from gls_jax.compression.gaussian.signal_files import decompress_signal

        if self.model is not None:
            raise ValueError(f"{self.blob}: holds a signal, which needs no --model")
        count, errors = decompress_signal(
            container,
            self.side,
            self.estimate,
            decoder=self.decoder,
            estimator=self.estimator,
            source_path=self.source,
            progress=partial(report, "symbols decoded"),
        )
        text = f"{count:,} symbols of decoder {self.decoder}, {self.estimator} estimate"
        figures = {"count": count, "estimator": self.estimator, **errors}
        return figures, text, _table(**errors) if errors else None

    def _images(self, container, report):
        from gls_jax.compression.images.model_images import decompress_images
        from gls_jax.models import load_vae

        if self.model is None:
            raise ValueError(
                f"{self.blob}: holds images; expected --model, the folder of the model that made it"
            )
        count, errors = decompress_images(
            container,
            load_vae(self.model),
            self.side,
            self.estimate,
            decoder=self.decoder,
            crop_seed=self.crop_seed,
            source_path=self.source,
            progress=partial(report, "images decoded"),
        )
        text = f"{count:,} images of decoder {self.decoder}"
        # Errors are known only if --source is given.
        if errors:
            text += "\nsquared error {squared_error:.4f} (pixels in [-1, 1]), PSNR {psnr:.2f} dB"
        return {"count": count, **errors}, text.format(**errors), None


def _table(distortion: dict[str, float], zero_rate: dict[str, float]) -> Table:
    columns = [Column(name, justify="right") for name in ("this decoder", "side information alone")]
    table = Table("", *columns, title="distortion in dB")
    for name, title in (
        ("mean_of_db", "mean of 10 log10 error²"),
        ("db_of_mean", "10 log10 of mean error²"),
    ):
        table.add_row(title, f"{distortion[name]:.3f}", f"{zero_rate[name]:.3f}")
    return table
