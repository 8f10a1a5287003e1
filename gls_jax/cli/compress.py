"""`gls-jax compress`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import ClassVar

import tyro
from rich.console import Console
from rich.table import Table

from gls_jax.cli import pictures, signals
from gls_jax.cli.console import progress

__all__ = ["Compress"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compress:
    """A standard normal signal or images to bytes, for decoders that each have side information of
    their own.
    """

    source: tyro.conf.Positional[Path]
    """An .npy file of n floats, scaled to variance 1. With --model images: an .npy array, a .png
    file or a folder of them; of whole images the right half is sent.
    """
    blob: tyro.conf.Positional[Path]
    """The file to write."""
    num_decoders: int
    """Decoders K; any one of them can decompress."""
    num_bins: int
    """Bins L; a symbol costs log2 L bits."""
    model: Path | None = None
    """For images: the folder that `gls-jax train` wrote."""
    target_variance: float | None = None
    """signal: of the target given the source: small for high rates."""
    side_variance: float | None = None
    """signal: of the side information given the source."""
    num_candidates: int | None = None
    """Shared candidates N a symbol. Default: 32,768 for a signal, 256 for images."""
    scheme: str = "gls"
    """`gls`, or `baseline`: all decoders share one stream of clocks."""
    search: str = "ordered"
    """signal: `ordered` (fast at any N) or `dense`: same law, other bytes."""
    seed: int = 0
    """Of the randomness that encoder and decoders share."""
    json: bool = False
    """Print one JSON object instead of a table."""
    resumable: ClassVar[bool] = False

    def run(self) -> None:
        """Read, encode, write, print."""
        from gls_jax.runs import files

        codec, source = self._codec_and_source()
        files.check_file(self.blob)
        with progress() as report:
            blob = codec.encode(self.seed, source, progress=partial(report, "symbols encoded"))
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.blob, lambda file: file.write(blob))
        sizes = codec.sizes(blob)
        figures = sizes._asdict() | {"rate": sizes.rate, "bytes": len(blob)}
        if self.json:
            print(json.dumps({"blob": str(self.blob), **figures}))
        else:
            _print_figures(figures, self.blob)

    def _codec_and_source(self):
        from gls_jax.compression import GaussianCodec

        if self.model is not None:
            return self._image_codec_and_source(self.model)
        if self.target_variance is None or self.side_variance is None:
            raise ValueError(
                "expected --target-variance and --side-variance for a signal, or --model for images"
            )
        sizes = (
            self.num_decoders,
            32_768 if self.num_candidates is None else self.num_candidates,
            self.num_bins,
        )
        variances = (self.target_variance, self.side_variance)
        return GaussianCodec(
            *sizes, *variances, scheme=self.scheme, search=self.search
        ), signals.read(self.source)

    def _image_codec_and_source(self, folder: Path):
        from gls_jax.compression import ImageCodec
        from gls_jax.models import load_vae

        if self.target_variance is not None or self.side_variance is not None:
            raise ValueError("expected --model for images or variances for a signal, got both")
        model, candidates = (
            load_vae(folder),
            256 if self.num_candidates is None else self.num_candidates,
        )
        codec = ImageCodec(model, self.num_decoders, candidates, self.num_bins, scheme=self.scheme)
        return codec, pictures.sources(self.source, model)


def _print_figures(figures: dict[str, int | float], blob: Path) -> None:
    table = Table(title=str(blob), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("symbols", f"{figures['count']:,}")
    table.add_row("header", f"{figures['header_bits']:,} bits")
    table.add_row("payload", f"{figures['payload_bits']:,} bits")
    table.add_row("rate", f"{figures['rate']:.4f} bits a symbol")
    table.add_row("file", f"{figures['bytes']:,} bytes")
    Console().print(table)
