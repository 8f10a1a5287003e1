"""Images to bytes and back with a model trained in seconds; the list code has separate tests."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import compression, models, races
from gls_jax.compression import ImageCodec, container, crops, halves, image_trials, symbol_keys
from gls_jax.compression.images.image_codec import BATCH_SIZE
from tests.images import CONFIG, TRAINING, ramps

IMAGES = ramps(300, seed=7)
LEFT, SOURCE = halves(IMAGES)
SIDE = np.asarray(crops(jax.random.key(1), jnp.asarray(LEFT), 4, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    models.train_vae(folder, ramps(512), CONFIG, **TRAINING)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return models.load_vae(folder)


@pytest.fixture(scope="module")
def codec(model):
    return ImageCodec(model, num_decoders=4, num_candidates=128, num_bins=8)


@pytest.fixture(scope="module")
def blob(codec):
    return codec.encode(5, SOURCE)


def test_bytes_and_back(codec, blob):
    sizes = codec.sizes(blob)
    assert (sizes.count, sizes.payload_bits) == (300, -(-300 * 3 // 8) * 8)
    assert codec.encode(5, SOURCE) == blob != codec.encode(6, SOURCE)
    unpacked = container.unpack(blob)
    assert ImageCodec.of(blob, codec.model) == ImageCodec.of(unpacked, codec.model) == codec
    decoded = [codec.decode(blob, SIDE[:, k], k) for k in range(4)]
    keys = symbol_keys(jax.random.key(5), 300)
    sent = codec.send(keys, codec.latent_distributions(SOURCE))
    assert (unpacked.messages == sent.message).all()
    draw_bin = jax.vmap(lambda key, index: races.bins(key, index, 8))
    draw_candidate = jax.vmap(lambda key, index: races.candidates(key, index, 2))
    for result in decoded:
        assert result.estimate.shape == SOURCE.shape and np.abs(result.estimate).max() <= 1
        # No decoder leaves the bin.
        assert (draw_bin(keys, result.index) == sent.message).all()
        assert (result.latent == draw_candidate(keys, result.index)).all()
    again = codec.decode(unpacked, SIDE[:, 0], 0)
    assert (again.index == decoded[0].index).all()
    same_side = codec.decode(blob, SIDE[:, 0], 1)
    assert (same_side.index != decoded[0].index).any(), "each decoder has its own stream"


def test_decoders_race_under_the_models_weights(codec, blob):
    """Against every member of the bin, one by one."""
    result, keys = codec.decode(blob, SIDE[:, 2], 2), symbol_keys(jax.random.key(5), 300)
    message, indices = container.unpack(blob).messages, jnp.arange(128)
    features = codec.features(SIDE[:, 2])
    num_wrong = 0
    for symbol in range(40):
        bins = races.bins(keys[symbol], indices, 8)
        candidates = races.candidates(keys[symbol], indices, 2)
        log_weights = codec.model.score(codec.model.params, features[symbol], candidates)
        scores = jnp.log(races.stream_exponentials(keys[symbol], indices, 4, 2)) - log_weights
        expected = int(jnp.argmin(jnp.where(bins == message[symbol], scores, jnp.inf)))
        num_wrong += expected != result.index[symbol]
    assert num_wrong == 0


def test_the_message_helps_and_side_information_helps(codec):
    """Against random bins, and against crops of other images; paired, so that 6 standard errors are 1e-9."""
    trials = image_trials(codec, 0, IMAGES, repeats=4)
    informed = trials.run(codec)
    keys, rng = trials.keys, np.random.default_rng(0)
    sent = codec.send(keys, trials.latents)
    others = np.roll(np.arange(len(keys)), 1)
    estimates_without = {}
    for name, message, features in (
        ("message", rng.integers(0, 8, len(keys)), trials.features),
        ("side", sent.message, trials.features[:, others]),
    ):
        estimates = [codec.receive(keys, message, features[k], k).estimate for k in range(4)]
        estimates_without[name] = np.stack(estimates)
    prior_mean = np.zeros((len(keys), 2), np.float32)
    estimates_without["both"] = codec.rebuild(prior_mean, trials.features[0])
    for name, estimates in estimates_without.items():
        errors = estimates.reshape(-1, *trials.source.shape) - trials.source
        gap = np.square(errors).mean((0, 2, 3, 4)) - informed.squared_error.mean((0, 1))
        assert gap.mean() > 6 * gap.std() / np.sqrt(len(gap)), name


def test_lists_beat_one_stream(codec):
    """Paired on images, crops, candidates and noise; 5 standard errors are 3e-7."""
    trials = image_trials(codec, 0, ramps(600, seed=8), repeats=2)
    gls = trials.run(codec)
    baseline = trials.run(dataclasses.replace(codec, scheme="baseline"))
    gap = (baseline.best(4) - gls.best(4)).mean(0)
    assert gap.mean() > 5 * gap.std() / np.sqrt(len(gap))
    # At K = 1 both schemes are the same.
    alone = trials.run(dataclasses.replace(codec, num_decoders=1))
    assert (alone.squared_error[0] == baseline.squared_error[0]).all()
    assert (alone.matched[0] == baseline.matched[0]).all()


def test_results_do_not_depend_on_how_the_caller_splits_the_images(codec, blob):
    keys = symbol_keys(jax.random.key(5), 300)
    latents, features = codec.latent_distributions(SOURCE), codec.features(SIDE[:, 1])
    sent, whole = codec.send(keys, latents), codec.decode(blob, SIDE[:, 1], 1)
    for first, last in ((0, BATCH_SIZE), (BATCH_SIZE, 3 * BATCH_SIZE), (4 * BATCH_SIZE, 300)):
        part = slice(first, last)
        cut = codec.latent_distributions(SOURCE[part])
        assert (cut.mean == latents.mean[part]).all()
        assert (cut.variance == latents.variance[part]).all()
        assert (codec.send(keys[part], cut).message == sent.message[part]).all()
        assert (codec.features(SIDE[part, 1]) == features[part]).all()
        result = codec.receive(keys[part], sent.message[part], features[part], 1)
        assert (result.index == whole.index[part]).all()
        assert (result.estimate == whole.estimate[part]).all()


def test_another_process_with_two_devices_reads_the_same(tmp_path, folder, codec, blob):
    np.savez(tmp_path / "in.npz", side=SIDE[:, 3], source=SOURCE)
    (tmp_path / "blob").write_bytes(blob)
    program = """
import sys, jax, numpy as np
from gls_jax import models
from gls_jax.compression import ImageCodec
folder, work = sys.argv[1:]
assert jax.device_count() == 2
blob, arrays = open(f"{work}/blob", "rb").read(), np.load(f"{work}/in.npz")
codec = ImageCodec.of(blob, models.load_vae(folder))
assert codec.encode(5, arrays["source"]) == blob
result = codec.decode(blob, arrays["side"], 3)
np.savez(f"{work}/out.npz", index=result.index, estimate=result.estimate)
"""
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PATH": "",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path)], check=True, env=environment
    )
    here = codec.decode(blob, SIDE[:, 3], 3)
    with np.load(tmp_path / "out.npz") as there:
        assert (there["index"] == here.index).all()
        assert np.allclose(there["estimate"], here.estimate, atol=1e-5)


def test_no_images_at_all(codec):
    blob = codec.encode(0, SOURCE[:0])
    assert codec.decode(blob, SIDE[:0, 0], 0).estimate.shape == (0, 8, 4, 1)


def test_blobs_of_others_are_refused(codec, blob):
    model = codec.model
    other = dataclasses.replace(model, model_hash="0" * 64)
    for wrong, message in (
        (dataclasses.replace(codec, model=other), "with parameters {'model': '0000"),
        (dataclasses.replace(codec, num_decoders=2), "with num_decoders 2, got 4"),
        (dataclasses.replace(codec, num_candidates=64), "with num_candidates 64, got 128"),
        (dataclasses.replace(codec, num_bins=16), "with num_bins 16, got 8"),
        (dataclasses.replace(codec, scheme="baseline"), "with scheme baseline, got gls"),
    ):
        with pytest.raises(ValueError, match=f"blob: expected one of an equal codec, {message}"):
            wrong.decode(blob, SIDE[:, 0], 0)
    with pytest.raises(ValueError, match="with parameters"):
        ImageCodec.of(blob, other)
    numbers = compression.GaussianCodec(2, 64, 8, target_variance=0.1, side_variance=0.5).encode(
        0, np.zeros(4)
    )
    with pytest.raises(ValueError, match="with kind images, got gaussian"):
        codec.decode(numbers, SIDE[:4, 0], 0)
    with pytest.raises(ValueError, match="with kind images, got gaussian"):
        ImageCodec.of(numbers, model)
    for broken, message in (
        (blob[:-1], "truncated: expected 376 bytes, got 375"),
        (blob + b"\0", "bytes after the end: expected 376, got 377"),
        (blob[:60] + bytes([blob[60] ^ 1]) + blob[61:], "checksum does not match"),
        (b"", "not a gls_jax blob: expected .* at its start, got b''"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.decode(broken, SIDE[:, 0], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda codec, blob: codec.encode(0, SOURCE[:, :7]),
            r"source: expected shape \[n, 8, 4, 1\], .* got \[300, 7",
        ),
        (
            lambda codec, blob: codec.encode(0, SOURCE[..., 0]),
            r"source: expected shape .* got \[300, 8, 4\]",
        ),
        (
            lambda codec, blob: codec.encode(0, SOURCE * np.nan),
            r"source: expected values within \[-1, 1\], got nan",
        ),
        (
            lambda codec, blob: codec.encode(0, SOURCE + 2),
            r"source: expected values within \[-1, 1\], got 1\.",
        ),
        (
            lambda codec, blob: codec.encode(0, np.zeros((2, 8, 4, 1), int)),
            r"source: expected floats .* got dtype int64",
        ),
        (lambda codec, blob: codec.encode(2**32, SOURCE), "seed: expected one int within"),
        (
            lambda codec, blob: codec.decode(blob, SIDE[:, 0], 4),
            r"decoder: expected one int within 0\.\.3, got 4",
        ),
        (
            lambda codec, blob: codec.decode(blob, SIDE[:9, 0], 0),
            r"side: expected one for each image \(300\), got 9",
        ),
        (lambda codec, blob: codec.decode(blob, SOURCE, 0), r"side: expected shape \[n, 3, 3, 1\]"),
        (
            lambda codec, blob: dataclasses.replace(codec, num_bins=0),
            "num_bins: expected an int of at least 1, got 0",
        ),
        (
            lambda codec, blob: dataclasses.replace(codec, num_bins=129),
            r"num_bins: expected at most num_candidates",
        ),
        (lambda codec, blob: dataclasses.replace(codec, scheme="best"), "scheme: expected"),
    ],
)
def test_bad_input(codec, blob, call, message):
    with pytest.raises(ValueError, match=message):
        call(codec, blob)
