"""Gaussian Wyner-Ziv codec: floats to bytes, and back with the side information of one decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax import checks
from gls_jax.compression import payload, symbol_coding
from gls_jax.compression.container import Container, Sizes, pack, sizes, unpack
from gls_jax.compression.container_fields import check_header, header
from gls_jax.compression.densities import gaussian_density
from gls_jax.compression.gaussian.estimators import Observation, plug_in
from gls_jax.compression.gaussian.gaussian_source import GaussianSource
from gls_jax.compression.gaussian.posterior_mean import posterior_mean
from gls_jax.compression.list_code import ListCode
from gls_jax.compression.symbol_groups import GROUP_SIZE
from gls_jax.compression.symbol_validation import check_messages, check_seed
from gls_jax.typing import Numbers, Progress

__all__ = ["ESTIMATORS", "GaussianCodec", "Reconstruction"]

# By the name that `decode`, `simulate` and the command line take. To add an estimator, add a line
# here and a sentence to the help text in cli/decompress.py.
ESTIMATORS: dict[str, Callable[[Observation], Float[np.ndarray, " n"]]] = {
    "plug_in": plug_in,
    "posterior_mean": posterior_mean,
}

_MAX_DEVIATIONS = 100.0  # no normal value is that many standard deviations away


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """The values that a decoder reconstructs from a blob.

    Attributes:
        estimate: `f32[n]`, of the source.
        index: `i32[n]`, of the candidate that this decoder picked.
        target: `f32[n]`, that candidate: the encoder's target where the indices match.
    """

    estimate: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]
    target: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class GaussianCodec:
    """Lossy compression of a standard normal source for `K` decoders with noisy side information.

    A symbol takes ``log2 L`` bits. Each decoder has separate side information, and uses only that.

    Attributes:
        num_decoders: `K`.
        num_candidates: `N`, at most 2^30. Ordered search visits about ``exp(a^2 / 2) / sqrt(s_W)``
            of them for a source value `a`, and at most `N`. At `N` = 2^15 that is 34 on average
            for ``s_W = .01`` and 98 for .001; at 2^24 it is 16 and 24 % more. A decoder visits
            about `L` times what its side information needs, 310 for 64 bins.
        num_bins: `L`, at most `N`.
        target_variance: `s_W`; small for high rates.
        side_variance: `s_T`.
        scheme: `gls`, or `baseline`: all decoders share one stream of noise.
        search: `ordered` or `dense`: the same distribution, other bytes.

    >>> import numpy as np
    >>> from gls_jax.compression import GaussianCodec
    >>> rng = np.random.default_rng(0)
    >>> source = rng.normal(size=1000)
    >>> sides = source + rng.normal(size=(2, 1000)) * 0.5**0.5
    >>> codec = GaussianCodec(2, 2**15, 64, target_variance=0.01, side_variance=0.5)
    >>> blob = codec.encode(0, source)
    >>> codec.sizes(blob).rate
    6.0
    >>> estimates = [codec.decode(blob, side, k).estimate for k, side in enumerate(sides)]
    >>> best = np.min((np.array(estimates) - source) ** 2, axis=0)
    >>> zero_rate = np.min((codec.joint_distribution.zero_rate(sides) - source) ** 2, axis=0)
    >>> bool(best.mean() < zero_rate.mean() / 2)
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
        # Both parts check their fields, and turn NumPy's numbers into Python's.
        for part in (self.code, self.joint_distribution):
            for field in dataclasses.fields(part):
                if hasattr(self, field.name):
                    object.__setattr__(self, field.name, getattr(part, field.name))
        payload.check_num_bins(self.num_bins)

    @property
    def code(self) -> ListCode:
        """Its list code."""
        counts = (self.num_decoders, self.num_candidates, self.num_bins)
        return ListCode(*counts, scheme=self.scheme, search=self.search)

    @property
    def joint_distribution(self) -> GaussianSource:
        """The joint distribution of source, target and side information that it is made for."""
        return GaussianSource(self.target_variance, self.side_variance)

    def encode(self, seed: int, source: Numbers, *, progress: Progress | None = None) -> bytes:
        """Compress.

        Args:
            seed: of the shared randomness, `0..2^32 - 1`; stored in the blob.
            source: `f32[n]`, scaled to variance 1.
            progress: called with `(symbols done, n)`.

        Raises:
            ValueError: another shape, values that are not finite, or more than a hundred standard
                deviations away.
        """
        seed = check_seed(seed)
        source = _check_values(source, "source", deviation=1.0)
        # One key per symbol: whoever knows the seed can draw the candidates of each symbol alone.
        keys = symbol_coding.keys_of_seed(seed, len(source))
        return self.pack(seed, self.send(keys, source, progress=progress).message)

    def decode(
        self,
        blob: bytes | Container,
        side_information: Numbers,
        decoder: int,
        *,
        estimator: str = "plug_in",
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Decompress with one decoder's side information.

        Args:
            blob: of :meth:`encode` of an equal codec, packed or unpacked.
            side_information: `f32[n]`.
            decoder: `0..K - 1`; selects the stream of noise.
            estimator: `plug_in`: ``E[A | W, T]`` as in the paper, as if the candidate were the
                encoder's; `posterior_mean` (ours): ``E[A | message, T, shared noise]``, at the
                cost of many encodings per symbol
                (:mod:`gls_jax.compression.gaussian.posterior_mean`).
            progress: called with `(symbols done, n)`.

        Raises:
            ValueError: a blob that is damaged or of another codec, side information of another
                length, or no such decoder.
        """
        container = unpack(blob)
        # Another codec would draw other candidates and bins for the same messages.
        check_header(container, self._header())
        message = container.messages
        # Before keys are made: a forged count of messages must not cost memory.
        side = self._check_side(side_information, len(message))
        keys = symbol_coding.keys_of_seed(container.seed, len(message))
        return self.receive(keys, message, side, decoder, estimator=estimator, progress=progress)

    @classmethod
    def of(cls, blob: bytes | Container) -> GaussianCodec:
        """The codec that made a blob, packed or unpacked."""
        container = unpack(blob)
        if container.kind != "gaussian":
            raise ValueError(f"blob: expected one of a Gaussian codec, got kind {container.kind!r}")
        return cls(
            container.num_decoders,
            container.num_candidates,
            container.num_bins,
            container.parameters.get("target_variance"),  # type: ignore[arg-type]  # checked
            container.parameters.get("side_variance"),  # type: ignore[arg-type]  # by the codec
            scheme=container.scheme,
            search=container.search,
        )

    @staticmethod
    def sizes(blob: bytes) -> Sizes:
        """Bits of header and payload, and the rate."""
        return sizes(blob)

    def send(
        self, keys: Key[Array, " n"], source: Numbers, *, progress: Progress | None = None
    ) -> symbol_coding.Sent:
        """The encoder's indices and messages, one key per symbol: what :meth:`encode` packs."""
        source = _check_values(source, "source", deviation=1.0)
        rows = self.joint_distribution.target_given_source(source)
        return symbol_coding.encode(self.code, keys, gaussian_density, (), rows, progress=progress)

    def receive(
        self,
        keys: Key[Array, " n"],
        message: Numbers,
        side_information: Numbers,
        decoder: int,
        *,
        estimator: str = "plug_in",
        progress: Progress | None = None,
    ) -> Reconstruction:
        """The reconstruction of :meth:`decode`, from messages `i32[n]`."""
        checks.one_of(estimator, tuple(ESTIMATORS), "estimator")
        message = check_messages(message, self.num_bins)
        side = self._check_side(side_information, len(message))
        joint = self.joint_distribution
        # Only one of the two steps takes long: the progress is that of the slow one.
        search_progress = progress if estimator == "plug_in" else None
        received = symbol_coding.decode(
            self.code,
            keys,
            message,
            decoder,
            gaussian_density,
            (),
            joint.target_given_side(side),
            progress=search_progress,
        )
        # Candidates are standard normals, the target has variance 1 + s_W.
        target = received.candidate[:, 0] * joint.scale
        observed = Observation(
            code=self.code,
            joint=joint,
            keys=keys,
            message=message,
            side_information=side,
            target=target,
            progress=progress,
        )
        estimate = ESTIMATORS[estimator](observed)
        return Reconstruction(
            estimate=estimate.astype(np.float32),
            index=received.index,
            target=target.astype(np.float32),
        )

    def pack(self, seed: int, message: Int[np.ndarray, " n"]) -> bytes:
        """Messages to bytes."""
        messages = check_messages(message, self.num_bins)
        return pack(Container(seed=check_seed(seed), messages=messages, **self._header()))

    def _check_side(self, side_information: Numbers, count: int) -> np.ndarray:
        deviation = (1 + self.side_variance) ** 0.5
        side = _check_values(side_information, "side_information", deviation)
        if len(side) != count:
            raise ValueError(
                f"side_information: expected one value per symbol ({count}), got {len(side)}"
            )
        return side

    def _header(self) -> dict:
        variances = {"target_variance": self.target_variance, "side_variance": self.side_variance}
        return header("gaussian", self.code, GROUP_SIZE, variances)


def _check_values(value: Numbers, name: str, deviation: float) -> np.ndarray:
    """`f32[n]`, finite and plausible for a normal of that standard deviation."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        got = type(value).__name__
        raise ValueError(f"{name}: expected an array of floats, got {got}") from None
    # jnp's test: NumPy does not know that bfloat16 is a float.
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if array.ndim != 1 or not (is_float or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(
            f"{name}: expected floats of shape [n], got {array.dtype} of shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        first_bad = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"{name}: expected finite values, got {array[first_bad]} at {first_bad}")
    # Larger values were not scaled, and no candidate is anywhere near them.
    largest_value = np.max(np.abs(array.astype(np.float64)), initial=0)
    if largest_value > _MAX_DEVIATIONS * deviation:
        raise ValueError(
            f"{name}: expected values of standard deviation {deviation:.3g}, "
            f"got {largest_value:.3g}; scale them"
        )
    return array.astype(np.float32)
