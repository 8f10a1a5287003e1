"""Gaussian Wyner-Ziv codec: an array of floats to bytes, and back with the side information of any
one decoder.
"""

from __future__ import annotations

import dataclasses
import operator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax import checks, races
from gls_jax.compression import container, gaussian_posterior, list_code, payload
from gls_jax.compression.code import ListCode, gaussian_density
from gls_jax.compression.container import Container
from gls_jax.compression.gaussian import GaussianSource
from gls_jax.compression.groups import GROUP, Progress
from gls_jax.compression.inputs import check_messages
from gls_jax.typing import Numbers

__all__ = ["ESTIMATORS", "GaussianCodec", "Reconstruction"]

ESTIMATORS = ("trusting", "posterior_mean")
_LARGEST = 100.0  # in standard deviations, of values that are meant to be normal


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """What a decoder makes of a blob.

    Attributes:
        estimate: `f32[n]`, of the source.
        index: `i32[n]`, of the candidate that this decoder chose.
        target: `f32[n]`, that candidate: the encoder's target where the indices match.
    """

    estimate: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]
    target: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class GaussianCodec:
    """Lossy compression of a standard normal source for `K` decoders, each with noisy side
    information of its own.

    ``log2 L`` bits a symbol, whatever the decoders know. Decoding needs one decoder's side
    information only.

    Attributes:
        num_decoders: `K`.
        num_candidates: `N`, at most 2^30. Ordered search visits about ``exp(a^2 / 2) / sqrt(s_W)``
            of them for a source value `a` and no more than `N`; at `N` = 2^15 on average 34 for
            ``s_W = .01`` and 98 for .001, 16 and 24 % more at 2^24. A decoder visits about `L`
            times what its side information needs, 310 for 64 bins.
        num_bins: `L`, at most `N`.
        target_variance: `s_W`: small for high rates.
        side_variance: `s_T`.
        scheme: `gls`, or `baseline`: all decoders share one stream.
        search: `ordered` or `dense`: same law, other bytes.

    >>> import numpy as np
    >>> from gls_jax.compression import GaussianCodec
    >>> rng = np.random.default_rng(0)
    >>> source = rng.normal(size=1000)
    >>> sides = source + rng.normal(size=(2, 1000)) * 0.5**0.5
    >>> codec = GaussianCodec(2, 2**15, 64, target_variance=0.01, side_variance=0.5)
    >>> blob = codec.encode(0, source)
    >>> codec.sizes(blob).rate
    6.0
    >>> errors = [
    ...     (codec.decode(blob, side, k).estimate - source) ** 2 for k, side in enumerate(sides)
    ... ]
    >>> silence = (codec.source_law.zero_rate(sides) - source) ** 2
    >>> bool(np.min(errors, axis=0).mean() < np.min(silence, axis=0).mean() / 2)
    True
    """

    num_decoders: int
    num_candidates: int
    num_bins: int
    target_variance: float
    side_variance: float
    scheme: str = "gls"
    search: str = "ordered"

    def __post_init__(self) -> None:
        for part in (
            self.code,
            self.source_law,
        ):  # they check, and turn NumPy's numbers into Python's
            for field in dataclasses.fields(part):
                if hasattr(self, field.name):
                    object.__setattr__(self, field.name, getattr(part, field.name))
        payload.check_num_bins(self.num_bins)

    @property
    def code(self) -> ListCode:
        """The list code behind it."""
        sizes = (self.num_decoders, self.num_candidates, self.num_bins)
        return ListCode(*sizes, scheme=self.scheme, search=self.search)

    @property
    def source_law(self) -> GaussianSource:
        """The joint law it is made for."""
        return GaussianSource(self.target_variance, self.side_variance)

    def encode(self, seed: int, source: Numbers, *, progress: Progress | None = None) -> bytes:
        """Compress.

        Args:
            seed: of the shared randomness, `0..2^32 - 1`; goes into the blob.
            source: `f32[n]`, scaled to variance 1.
            progress: called with `(symbols done, n)`.

        Raises:
            ValueError: values that are not finite or a hundred standard deviations away, or another
                shape.
        """
        seed, source = _seed(seed), _values(source, "source", 1.0)
        return self.pack(
            seed, self.send(_keys(seed, len(source)), source, progress=progress).message
        )

    def decode(
        self,
        blob: bytes,
        side_information: Numbers,
        decoder: int,
        *,
        estimator: str = "trusting",
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Decompress with one decoder's side information.

        Args:
            blob: of :meth:`encode` of an equal codec.
            side_information: `f32[n]`.
            decoder: which, `0..K - 1`: its own stream of clocks.
            estimator: `trusting`: ``E[A | W, T]`` as in the paper, as if the candidate were the
                encoder's; `posterior_mean` (ours): ``E[A | message, T, shared noise]``, for many
                encodings a symbol (:mod:`gls_jax.compression.gaussian_posterior`).
            progress: called with `(symbols done, n)`.

        Raises:
            ValueError: a blob that is broken or of another codec, side information of another
                length, a decoder that does not exist.
        """
        found = container.unpack(blob)
        container.check_header(found, self._header())
        self._check_request(decoder, estimator)
        side_information = self._side(side_information, len(found.messages))
        keys = _keys(found.seed, len(found.messages))
        return self.receive(
            keys, found.messages, side_information, decoder, estimator=estimator, progress=progress
        )

    @classmethod
    def of(cls, blob: bytes) -> GaussianCodec:
        """The codec that made a blob."""
        found = container.unpack(blob)
        if found.kind != "gaussian":
            raise ValueError(f"blob: expected one of a Gaussian codec, got kind {found.kind!r}")
        return cls(
            found.num_decoders,
            found.num_candidates,
            found.num_bins,
            found.parameters.get("target_variance"),  # type: ignore[arg-type]  # the law checks both
            found.parameters.get("side_variance"),  # type: ignore[arg-type]
            scheme=found.scheme,
            search=found.search,
        )

    @staticmethod
    def sizes(blob: bytes) -> container.Sizes:
        """Bits of header and payload, and the rate."""
        return container.sizes(blob)

    def send(
        self, keys: Key[Array, " n"], source: Numbers, *, progress: Progress | None = None
    ) -> list_code.Sent:
        """The encoder's indices and messages, one key a symbol: what :meth:`encode` packs."""
        source = _values(source, "source", 1.0)
        rows = self.source_law.target_given_source(source)
        return list_code.encode(self.code, keys, gaussian_density, (), rows, progress=progress)

    def receive(
        self,
        keys: Key[Array, " n"],
        message: Numbers,
        side_information: Numbers,
        decoder: int,
        *,
        estimator: str = "trusting",
        progress: Progress | None = None,
    ) -> Reconstruction:
        """What :meth:`decode` makes of the messages `i32[n]`."""
        self._check_request(decoder, estimator)
        message = check_messages(message, self.num_bins)
        side = self._side(side_information, len(message))
        law, rows = self.source_law, self.source_law.target_given_side(side)
        quick = progress if estimator == "trusting" else None
        found = list_code.decode(
            self.code, keys, message, decoder, gaussian_density, (), rows, progress=quick
        )
        target = found.candidate[:, 0] * law.scale
        if estimator == "trusting":
            estimate = np.where(found.index < 0, law.zero_rate(side), law.estimate(target, side))
        else:
            estimate = gaussian_posterior.mean(
                self.code, law, keys, message, side, progress=progress
            )
        return Reconstruction(estimate.astype(np.float32), found.index, target.astype(np.float32))

    def pack(self, seed: int, message: Int[np.ndarray, " n"]) -> bytes:
        """Messages to bytes."""
        messages = check_messages(message, self.num_bins)
        return container.pack(Container(seed=_seed(seed), messages=messages, **self._header()))

    def _check_request(self, decoder: int, estimator: str) -> None:
        checks.one_of(estimator, ESTIMATORS, "estimator")
        self.code.stream(decoder)

    def _side(self, side_information, count: int) -> np.ndarray:
        side = _values(side_information, "side_information", (1 + self.side_variance) ** 0.5)
        if len(side) != count:
            raise ValueError(
                f"side_information: expected one value a symbol ({count}), got {len(side)}"
            )
        return side

    def _header(self) -> dict:
        variances = {"target_variance": self.target_variance, "side_variance": self.side_variance}
        return container.header("gaussian", self.code, GROUP, variances)


def _seed(seed) -> int:
    return operator.index(checks.index(seed, "seed", last=2**32 - 1))


def _keys(seed: int, count: int):
    return list_code.symbol_keys(races.new_key(_seed(seed)), count)


def _values(value, name: str, deviation: float) -> np.ndarray:
    """`f32[n]`, finite and within what a normal of that standard deviation can be."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected an array of floats, got {type(value).__name__}"
        ) from None
    number = jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(
        array.dtype, jnp.integer
    )  # also bfloat16
    if array.ndim != 1 or not number:
        raise ValueError(
            f"{name}: expected floats of shape [n], got {array.dtype} of shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        where = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"{name}: expected finite values, got {array[where]} at {where}")
    if (size := np.max(np.abs(array.astype(np.float64)), initial=0)) > _LARGEST * deviation:
        raise ValueError(
            f"{name}: expected values of standard deviation {deviation:.3g}, got {size:.3g}; scale them"
        )
    return array.astype(np.float32)
