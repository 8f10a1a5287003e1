"""Texts and what the target makes of them, in a folder of memory-mapped arrays.

The files of a folder: `tokens.npy`, the texts one after the other; `features.npy`, the target's
features after each token, in float16; `log_totals.npy`, the log of the sum of all ``exp(logit)``;
and `texts.json` with everything these depend on and the number of texts read. Texts are read in the
order of their lengths, so that those of one batch are about equally long.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax.models.transformer import Transformer
from gls_jax.runs import files
from gls_jax.runs.resume import Manifest, check_resumable, differing_entries
from gls_jax.typing import Progress

__all__ = ["TextFeatures", "check_observed_layers", "padded_length", "read_texts", "weights_hash"]

_FORMAT = 1
_RUN = "the features of texts"
# Texts of one batch are padded to a multiple of this: few lengths, so few programs.
_LENGTH_STEP = 64
_BATCH_TOKENS = 4096


class TextFeatures(NamedTuple):
    """Texts and features.

    Attributes:
        starts: `i64[n + 1]`, where each of n texts begins, and where the last one ends.
        tokens: `i32[t]`, the texts one after the other.
        features: `f16[t, W]`, outputs of the observed layers after each token, side by side, each
            divided by its root mean square.
        log_totals: `f32[t]`, log of the sum over the vocabulary of ``exp(logit)``.
    """

    starts: np.ndarray
    tokens: np.ndarray
    features: np.ndarray
    log_totals: np.ndarray


def read_texts(
    folder: str | Path,
    target: Transformer,
    texts: Sequence[Sequence[int]],
    observed_layers: Sequence[int],
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> TextFeatures:
    """Let the target read texts, and keep its features on the disk.

    Args:
        folder: made if missing.
        target: the target.
        texts: token ids of each text, from its beginning, at least two each.
        observed_layers: indices of the target's layers, increasing; the last one must be its last
            layer, from whose output training computes the target's distributions.
        resume: continue an earlier call that was stopped.
        progress: called with `(tokens read, tokens)`.

    Returns:
        The arrays, memory-mapped.

    Raises:
        ValueError: no texts, one with fewer than two tokens or with tokens that the target does not
            have, other layers, or a folder of something else.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    layers = check_observed_layers(observed_layers, target.config.num_layers)
    _check_texts(target, texts)
    lengths = np.array([len(text) for text in texts])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([np.asarray(text, np.int32) for text in texts])
    configuration = {
        "texts": hashlib.sha256(starts.tobytes() + tokens.tobytes()).hexdigest(),
        "target": weights_hash(target),
        "layers": list(layers),
    }
    files.check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    num_done = _previous_texts(folder, configuration, len(texts), resume)
    arrays = _open(folder, starts, tokens, len(layers) * target.config.hidden_size, num_done)

    step = _reader(target, layers)
    order = np.argsort(lengths, kind="stable")
    while num_done < len(texts):
        length = padded_length(int(lengths[order[num_done]]))
        batch = order[num_done : num_done + max(1, _BATCH_TOKENS // length)]
        # The longest of the batch may need more than the first.
        length = padded_length(int(lengths[batch].max()))
        rows = np.zeros((len(batch), length), np.int32)
        for row, text in enumerate(batch):
            rows[row, : lengths[text]] = tokens[starts[text] : starts[text + 1]]
        features, log_totals = step(jnp.asarray(rows))
        for row, text in enumerate(batch):
            place = slice(starts[text], starts[text + 1])
            arrays.features[place] = features[row, : lengths[text]]
            arrays.log_totals[place] = log_totals[row, : lengths[text]]
        num_done += len(batch)
        # Features are on the disk before the manifest counts them.
        for array in (arrays.features, arrays.log_totals):
            array.flush()  # type: ignore[attr-defined]
        Manifest(_FORMAT, configuration, {"texts": num_done}).write(folder / "texts.json")
        if progress is not None:
            progress(int(lengths[order[:num_done]].sum()), len(tokens))
    return arrays


def check_observed_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layers as a tuple, or a `ValueError`: increasing, and the target's last one among them."""
    layers = tuple(layers)
    is_increasing = list(layers) == sorted(set(layers))
    if not layers or not is_increasing or layers[0] < 0 or layers[-1] != num_layers - 1:
        raise ValueError(
            f"observed_layers: expected increasing indices that end with {num_layers - 1}, the "
            f"target's last layer, got {list(layers)}"
        )
    return layers


def padded_length(length: int) -> int:
    """The length to which a batch of texts is padded."""
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _reader(target: Transformer, layers: tuple[int, ...]):
    """A compiled function from tokens `[B, T]` to features and log-totals."""
    graph, params = nnx.split(target)

    @jax.jit
    def read(params, tokens):
        model = nnx.merge(graph, params)
        hidden, features, _ = model.hidden(tokens, feature_layers=layers)
        # One text at a time: the logits of all would take much memory.
        log_totals = jax.lax.map(
            lambda row: jax.nn.logsumexp(model.logits(row[None])[0], axis=-1), hidden
        )
        return features.astype(jnp.float16), log_totals

    def step(tokens):
        return jax.device_get(read(params, tokens))

    return step


def _check_texts(target: Transformer, texts) -> None:
    if not texts:
        raise ValueError("texts: expected at least one, got none")
    for index, text in enumerate(texts):
        if len(text) < 2 or min(text) < 0 or max(text) >= target.config.vocab_size:
            raise ValueError(
                f"texts: expected at least two tokens within 0..{target.config.vocab_size - 1}, "
                f"got something else as text {index}"
            )


def _previous_texts(folder: Path, configuration: dict, num_texts: int, resume: bool) -> int:
    """Number of texts that an earlier call has read."""
    path = folder / "texts.json"
    if not path.exists():
        return 0
    manifest = Manifest.read(
        path,
        run=_RUN,
        format=_FORMAT,
        is_valid=lambda manifest: manifest.progress["texts"] >= 0,
    )
    check_resumable(
        folder,
        _RUN,
        resume=resume,
        differences=differing_entries(manifest.configuration, configuration),
    )
    return min(manifest.progress["texts"], num_texts)


def _open(folder: Path, starts, tokens, width: int, num_done: int) -> TextFeatures:
    """The arrays of the folder, new ones if nothing has been read."""
    features_path, totals_path = folder / "features.npy", folder / "log_totals.npy"
    shape = (len(tokens), width)
    if not num_done:
        files.new_array(folder / "tokens.npy", np.int32, tokens.shape)[...] = tokens
        files.new_array(features_path, np.float16, shape)
        files.new_array(totals_path, np.float32, shape[:1])
    return TextFeatures(
        starts=starts,
        tokens=tokens,
        features=files.open_array(features_path, "features", "float16", shape, writable=True),
        log_totals=files.open_array(totals_path, "log-totals", "float32", shape[:1], writable=True),
    )


def weights_hash(target: Transformer) -> str:
    """Hash of the configuration and of some weights of every kind, from all layers."""
    digest = hashlib.sha256(repr(target.config).encode())
    for leaf in jax.tree.leaves(nnx.state(target)):
        # The first axis is that of the layers, if there is one.
        some = leaf.reshape(leaf.shape[0], -1)[:, :16]
        digest.update(np.asarray(some, np.float32).tobytes())
    return digest.hexdigest()
