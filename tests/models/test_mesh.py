"""Logits do not depend on the mesh: 2, 4 and 8 host devices in another process, one in this one."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from gls_jax import models
from tests import compilation

# Eight query heads and 48 units divide over all meshes, four key-value heads over 4 devices, two
# key-value heads and a vocabulary of 62 over 2.
FIELDS = {
    "vocab_size": 62,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
}
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from gls_jax import decoding, models

tokens = jnp.asarray(np.random.default_rng(0).integers(0, 62, (8, 6)), jnp.int32)
step = jax.jit(lambda model, tokens, cache: model.apply(model.params, tokens, None, None, cache))

def run(model):
    first, cache = step(model, tokens[:, :4], model.init_cache(8, 12))
    last, cache = step(model, tokens[:, 4:], cache)
    return np.concatenate([first, last], 1), cache, last

def specs(params):
    by_path = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(step.key) for step in path if hasattr(step, "key")]
        by_path[".".join(names)] = list(leaf.sharding.spec)
    return by_path

def shard_shape(array):
    return str(array.sharding.shard_shape(array.shape))

def texts(mesh):
    target = models.load(sys.argv[1], mesh=mesh)
    drafter = models.language_model(models.keep_layers(target.model, [0, 2]))
    generation = decoding.generate(
        jax.random.key(0), target.language_model, drafter, [[1, 2, 3], [4, 5]],
        scheme="gls", num_drafts=2, draft_length=2, max_new_tokens=8,
    )
    return generation.tokens.tolist()

print(json.dumps([texts(None), texts(jax.make_mesh((2, 4), ("data", "model")))]))
mesh_shapes = (((2, 1), (2, 2), (1, 8)), ((2, 4),))
for folder, shapes in zip(sys.argv[1:], mesh_shapes, strict=True):
    expected, _, _ = run(models.load(folder).language_model)
    for shape in shapes:
        devices = jax.devices()[: shape[0] * shape[1]]
        mesh = jax.make_mesh(shape, ("data", "model"), devices=devices)
        model = models.load(folder, mesh=mesh).language_model
        logits, cache, last = run(model)
        print(json.dumps({
            "shape": shape,
            "std": float(expected.std()),
            "error": float(np.abs(logits - expected).max() / np.abs(expected).max()),
            "specs": specs(model.params),
            "cache": shard_shape(cache.keys),
            "logits": shard_shape(last),
        }))
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory, tiny):
    """What the program prints: texts, then one row for each checkpoint and mesh."""
    plain = FIELDS | {"model_type": "llama"}
    few_heads = plain | {"num_key_value_heads": 2, "tie_word_embeddings": True}
    folders = []
    for name, fields in (("plain", plain), ("few", few_heads)):
        folder = tmp_path_factory.mktemp("mesh") / name
        folders.append(str(tiny.write_folder(folder, fields, tiny.random_tensors(fields))))
    env = compilation.quick_environment(num_devices=8)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *folders], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def rows(printed):
    return printed[1:]


def test_logits_are_those_of_one_device(rows):
    assert len(rows) == 4
    # Errors are relative to the largest logit: the weights are large, and so is their rounding.
    for row in rows:
        assert row["std"] > 0.1 and row["error"] < 1e-5, row


def test_texts_are_those_of_one_device(printed):
    one_device, mesh = printed[0]
    assert one_device == mesh
    assert len(one_device) == 2


def test_weights_and_caches_are_split(rows):
    by_shape = {tuple(row["shape"]): row for row in rows[:3]}
    few = {tuple(row["shape"]): row for row in rows[3:]}
    # Matrices are [out, in].
    specs = by_shape[2, 2]["specs"]
    assert specs["blocks.0.attention.query.weight"] == specs["blocks.0.feed_forward.up.weight"]
    assert specs["blocks.0.attention.query.weight"] == ["model", None]
    assert specs["blocks.0.attention.output.weight"] == [None, "model"]
    assert specs["embedding"] == specs["head"] == ["model", None]
    assert specs["norm.weight"] == []
    # Two key-value heads do not divide over four devices, nor does the vocabulary.
    few_specs = few[2, 4]["specs"]
    assert few_specs["blocks.0.attention.key.weight"] == few_specs["embedding"] == []
    assert few_specs["blocks.0.attention.query.weight"] == ["model", None]
    assert by_shape[2, 2]["cache"] == few[2, 4]["cache"] == "(3, 4, 2, 8, 12)"
    assert by_shape[2, 2]["logits"] == "(4, 2, 62)"


def test_mesh_with_other_axes(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    with pytest.raises(ValueError, match="mesh: expected axes data and model, got x, y"):
        models.load(folder, mesh=jax.make_mesh((1, 1), ("x", "y")))


def test_one_device_mesh_changes_no_bit(tmp_path, tiny):
    folder = tiny.write_folder(tmp_path / "model", tiny.fields, tiny.tensors)
    loaded = models.load(folder, mesh=jax.make_mesh((1, 1), ("data", "model")))
    tokens = np.arange(12)[None]
    np.testing.assert_array_equal(
        tiny.run(loaded.model, tokens)[0], tiny.run(tiny.model, tokens)[0]
    )
