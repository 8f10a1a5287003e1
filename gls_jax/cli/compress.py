"""`gls-jax compress`."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Column, Table

from gls_jax.cli.console import print_json, progress

__all__ = ["Compress"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress:
    """Compress a standard normal signal or images for decoders with side information."""

    source: tyro.conf.Positional[Path]
    """An .npy file of n floats, scaled to variance 1. With --model images: an .npy array, a .png
    file or a folder of them; the right half of each image is sent.
    """
    blob: tyro.conf.Positional[Path]
    """The file to write."""
    num_decoders: int
    """Decoders K; any one of them can decompress."""
    num_bins: int
    """Bins L; a symbol takes log2 L bits."""
    model: Path | None = None
    """For images: the folder that `gls-jax train` wrote."""
    target_variance: float | None = None
    """Signals: variance of the target given the source; small for high rates."""
    side_variance: float | None = None
    """Signals: variance of the side information given the source."""
    num_candidates: int | None = None
    """Shared candidates N per symbol. Default: 32,768 for a signal, 256 for images."""
    scheme: str = "gls"
    """`gls`, or `baseline`, in which all decoders share one stream of noise."""
    search: str = "ordered"
    """Signals: `ordered` (fast at any N) or `dense`: the same distribution, other bytes."""
    seed: int = 0
    """Seed of the randomness that encoder and decoders share."""
    json: bool = False
    """Print one JSON object instead of a table."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Read, encode, write, print."""
        from gls_jax.compression.blob_files import write_blob

        codec, source = self._signal() if self.model is None else self._images(self.model)
        with progress() as report:
            show = partial(report, "symbols encoded")
            sizes = write_blob(self.blob, lambda: codec.encode(self.seed, source, progress=show))
        # The header's bits include prefix and checksum.
        num_bytes = (sizes.header_bits + sizes.payload_bits) // 8
        if self.json:
            figures = {"blob": str(self.blob), **sizes._asdict(), "rate": sizes.rate}
            print_json(figures | {"bytes": num_bytes})
            return
        table = Table("", Column(justify="right"), title=str(self.blob), show_header=False)
        for name, value in (
            ("symbols", f"{sizes.count:,}"),
            ("header", f"{sizes.header_bits:,} bits"),
            ("payload", f"{sizes.payload_bits:,} bits"),
            ("rate", f"{sizes.rate:.4f} bits per symbol"),
            ("file", f"{num_bytes:,} bytes"),
        ):
            table.add_row(name, value)
        Console().print(table)

    def _signal(self):
        from gls_jax.compression import GaussianCodec
        from gls_jax.compression.gaussian.signal_files import read_signal

        if self.target_variance is None or self.side_variance is None:
            raise ValueError(
                "expected --target-variance and --side-variance for a signal, or --model for images"
            )
        # Ordered search costs the same for any N, so the default is the paper's.
        codec = GaussianCodec(
            num_decoders=self.num_decoders,
            num_candidates=32_768 if self.num_candidates is None else self.num_candidates,
            num_bins=self.num_bins,
            target_variance=self.target_variance,
            side_variance=self.side_variance,
            scheme=self.scheme,
            search=self.search,
        )
        return codec, read_signal(self.source)

    def _images(self, folder: Path):
        from gls_jax.compression import ImageCodec
        from gls_jax.compression.images.model_images import read_sources
        from gls_jax.models import load_vae

        if self.target_variance is not None or self.side_variance is not None:
            raise ValueError("expected --model for images or variances for a signal, got both")
        # Dense search: the network scores every candidate of a bin.
        codec = ImageCodec(
            model=load_vae(folder),
            num_decoders=self.num_decoders,
            num_candidates=256 if self.num_candidates is None else self.num_candidates,
            num_bins=self.num_bins,
            scheme=self.scheme,
        )
        return codec, read_sources(self.source, codec.model)
