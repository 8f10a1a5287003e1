"""Decoding, compression and dumps give the same bits in every mode that a user's script may have set."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from gls_jax import compression, decoding, distributions, models, planner, races, studies
from gls_jax.compression import GaussianCodec, ImageCodec
from gls_jax.distributions import pairs
from gls_jax.planner import conditional
from gls_jax.studies import acceptance_study

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, SEED = 7, 3
TABLE = np.random.default_rng(0).normal(size=(2, VOCABULARY, VOCABULARY)).astype(np.float32)
PROMPTS = [[3], [5, 2]]
SIZES = models.Config(
    vocab_size=VOCABULARY,
    hidden_size=8,
    intermediate_size=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
)
TRANSFORMER = models.language_model(models.Transformer(SIZES, rngs=nnx.Rngs(0)))
DISTRIBUTIONS = jax.nn.log_softmax(jnp.asarray(TABLE[:, :2]))
PICTURES = np.random.default_rng(1).uniform(-1, 1, size=(4, 6, 8, 1)).astype(np.float32)
NETWORK = models.VaeConfig.of_images(PICTURES, crop=3, channels=4, hidden=8, features=6)


def following(params, tokens):
    return params[tokens]


def bigrams(dtype=np.float32):
    tables = TABLE[0], TABLE[0] + TABLE[1]
    return [
        decoding.from_function(following, jnp.asarray(table.astype(dtype)), VOCABULARY)
        for table in tables
    ]


def generated(target, drafter, **options) -> list[np.ndarray]:
    options = {"draft_length": 2, "max_new_tokens": 6} | options
    found = decoding.generate(races.new_key(SEED), target, drafter, PROMPTS, **options)
    assert found.tokens.dtype == found.lengths.dtype == jnp.int32
    return [np.asarray(found.tokens), np.asarray(found.lengths)]


def with_every_parameter():
    sampling = {
        "temperature": [0.5, 0.0],
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
    }
    return generated(
        bigrams()[0], decoding.ngram_lookup(VOCABULARY), scheme="gls", stop_tokens=[1], **sampling
    )


def by_a_transformer():
    return generated(TRANSFORMER, None)


def round_by_round():
    tree = decoding.MarginTree(4, 2, children=4)
    options = decoding.DecodeOptions(tree=tree, max_new_tokens=6)
    run = decoding.stream(races.new_key(SEED), *bigrams(), PROMPTS, options=options)
    return [np.concatenate(new) for new in run]


def sent_and_received(search: str):
    codec = GaussianCodec(2, 128, 4, 0.05, 0.5, search=search)
    source = np.linspace(-1, 1, 3)
    blob = codec.encode(SEED, source)
    received = codec.decode(blob, source + 0.1, 1)
    assert not codec.sizes(blob).payload_bits % 8
    return [np.frombuffer(blob, np.uint8), received.index, received.estimate]


def pictures():
    """What the image codec adds to the dense search: crops and networks."""
    codec = ImageCodec(
        models.image_model(models.new_vae(NETWORK, races.new_key(SEED)), NETWORK), 2, 64, 8
    )
    left, right = compression.halves(PICTURES)
    side = np.asarray(compression.crops(races.new_key(SEED), jnp.asarray(left), 1, 3)[:, 0])
    return [side, *codec.latent_distributions(right), codec.features(side)]


def training(tmp_path):
    trained = models.train_vae(
        tmp_path / "run", PICTURES, NETWORK, beta=0.1, epochs=1, seed=SEED, batch=2
    )
    return [
        *map(np.asarray, trained.losses),
        *map(np.asarray, jax.tree.leaves(trained.model.params)),
    ]


def dump(tmp_path):
    target, drafter = bigrams()
    asked = distributions.Sampling()

    def texts(first):
        return distributions.sampled_texts(
            races.new_key(SEED), target, PROMPTS, asked, length=4, batch=2, first=first
        )

    made = distributions.write(
        tmp_path / "dump",
        target,
        drafter,
        texts,
        asked,
        num_positions=6,
        context_length=6,
        num_kept=3,
        metadata={},
    )
    studies.position_acceptance(made, tmp_path / "sweep", names=["naive"], num_drafts=[1, 2])
    return [np.frombuffer(path.read_bytes(), np.uint8) for path in sorted(tmp_path.glob("*/*.npy"))]


def studied(tmp_path):
    random = pairs.random(races.new_key(SEED), 2, 5)
    acceptance_study.run(
        acceptance_study.Study(("naive",), num_drafts=(1, 2), num_trials=64, seed=SEED),
        random,
        tmp_path / "study",
    )
    return [*random, np.frombuffer((tmp_path / "study" / "acceptance.csv").read_bytes(), np.uint8)]


def kernels():
    return [
        conditional.kernels(*DISTRIBUTIONS, scheme=name, num_drafts=2)
        for name in ("poisson", "gumbel_topk", "specinfer", "spectr")
    ]


TASKS = {
    "every parameter": lambda _: with_every_parameter(),
    "transformer": lambda _: by_a_transformer(),
    "stream": lambda _: round_by_round(),
    "ordered": lambda _: sent_and_received("ordered"),
    "dense": lambda _: sent_and_received("dense"),
    "pictures": lambda _: pictures(),
    "training": training,
    "dump": dump,
    "study": studied,
    "kernels": lambda _: kernels(),
}


def set_mesh(kind: AxisType):
    return jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(kind,)))


# Modes that have nothing to do with each other are tested together: each costs the time of all programs.
MODES = {
    "double precision and other random bits": lambda: (
        jax.enable_x64(True),
        jax.default_prng_impl("rbg"),
        jax.threefry_partitionable(False),
    ),
    "strict promotion and no NaN": lambda: (
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
    ),
    "a mesh": lambda: (set_mesh(AxisType.Auto),),
    "an explicit mesh": lambda: (set_mesh(AxisType.Explicit),),
}


@pytest.fixture(scope="module")
def by_default(tmp_path_factory):
    """What each task gives in the default mode, worked out when first asked for."""
    return cache(lambda task: TASKS[task](tmp_path_factory.mktemp("default")))


CASES = [
    *(("double precision and other random bits", task) for task in TASKS),
    *(("strict promotion and no NaN", task) for task in TASKS),
    *(("a mesh", task) for task in ("ordered", "study")),
    *(("an explicit mesh", task) for task in ("transformer", "study")),
]


@pytest.mark.parametrize(("mode", "task"), CASES)
def test_same_bits(mode, task, by_default, tmp_path):
    expected = by_default(task)
    with ExitStack() as modes:
        for context in MODES[mode]():
            modes.enter_context(context)
        found = TASKS[task](tmp_path)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16, jnp.float16])
def test_numbers_of_another_type(dtype):
    """Logits are cast to float32 before anything else, so that types which hold them exactly change nothing."""
    logits = np.round(TABLE[0] * 16) / 16
    expected = decoding.log_probs(logits.astype(np.float32), temperature=0.5, top_p=0.9)
    found = decoding.log_probs(logits.astype(dtype), temperature=0.5, top_p=0.9)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        decoding.log_probs(logits.tolist(), temperature=0.5, top_p=0.9), expected
    )


def test_lists_and_arrays():
    """Prompts, sources and side information as lists, NumPy's or JAX's arrays of any type."""
    codec = GaussianCodec(2, 128, 4, 0.05, 0.5)
    source = [-1.0, 0.0, 1.0]
    blob = codec.encode(SEED, source)
    for other in (
        np.asarray(source),
        np.asarray(source, np.float16),
        jnp.asarray(source),
        jnp.asarray(source, jnp.bfloat16),
    ):
        assert codec.encode(np.uint32(SEED), other) == blob
        np.testing.assert_array_equal(
            codec.decode(blob, other, 1).index, codec.decode(blob, source, 1).index
        )
    target = bigrams()[0]
    expected = decoding.generate(
        races.new_key(SEED), target, None, [[5, 2]], max_new_tokens=3
    ).tokens
    for prompts in (
        np.array([[5, 2]], np.uint8),
        np.array([[5, 2]], np.int64),
        jnp.array([[5, 2]]),
        [np.array([5, 2])],
    ):
        found = decoding.generate(
            races.new_key(SEED), target, None, prompts, max_new_tokens=np.int64(3)
        ).tokens
        np.testing.assert_array_equal(found, expected)


PICKLED = [
    GaussianCodec(2, 128, 4, 0.05, 0.5),
    GaussianCodec(2, 128, 4, 0.05, 0.5).sizes(
        GaussianCodec(2, 128, 4, 0.05, 0.5).encode(SEED, [0.5])
    ),
    compression.ListCode(2, 64, 4),
    compression.gaussian_density,
    decoding.MarginTree(4, 2, children=4),
    distributions.Sampling(temperature=0.5),
    acceptance_study.Study(("gls",), (1, 2), 64, SEED),
    planner.Setting("gls", 2, 4, None),
    SIZES,
    NETWORK,
]


@pytest.mark.parametrize("value", PICKLED, ids=lambda value: type(value).__name__)
def test_pickling(value):
    assert pickle.loads(pickle.dumps(value)) == value


def test_models_pickle():
    """A model with its functions, and what generation gives: numbers come back equal, and nothing compiles anew."""
    target = pickle.loads(pickle.dumps(bigrams()[0]))
    assert (target.apply, target.init_cache) == (bigrams()[0].apply, bigrams()[0].init_cache)
    found = decoding.generate(races.new_key(SEED), target, None, [[5, 2]], max_new_tokens=3)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.tokens, found.tokens)
    assert again.metrics.block_efficiency == found.metrics.block_efficiency
    transformer = pickle.loads(pickle.dumps(TRANSFORMER))
    assert transformer.apply == TRANSFORMER.apply
