"""The rejection sampler of tpu-inference: its law over whole texts, its form, and what it does not depend on.

Texts are in the language of `tests.schemes.tree_rounds`, written in rounds of one batch whose requests have 2, 1 and no
drafts. Each statistical test fails a correct sampler with probability at most ALPHA for another key.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import package_files
from gls_jax import races, schemes
from gls_jax.adapters import tpu_inference
from tests import oracles
from tests.schemes.scheme_trials import ALPHA
from tests.schemes.tree_rounds import DRAFT, TARGET, TOKENS, sequence_number, sequence_probs

pytestmark = pytest.mark.usefixtures("quick_compilation")

NUM_REQUESTS, LENGTH = 30_000, 3
LENGTHS = np.tile(np.array([2, 1, 0]), NUM_REQUESTS // 3)
LAST_POSITION = len(TARGET) - 1
SHARED = ("gls", "gumbel_topk", "gls_strong")


def rows(language, positions, previous):
    return language[np.minimum(positions, LAST_POSITION), previous + 1]


def request_keys(count=NUM_REQUESTS, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def drafted(scheme, keys, positions, probs):
    """One draft of every request; of the noise of its position where the scheme shares noise."""
    log_p = jnp.log(jnp.asarray(probs, jnp.float32))
    if scheme not in SHARED:
        # Noise of a key that the sampler never sees.
        private = jax.vmap(lambda key: jax.random.fold_in(key, 77))(keys)
        draft_keys = jax.vmap(races.position_key)(private, positions)
        return jax.vmap(jax.random.categorical)(draft_keys, log_p)
    propose = schemes.get(scheme).propose_fn
    draft_keys = jax.vmap(races.position_key)(keys, positions)
    return jax.vmap(lambda key, log_p: propose(key, log_p, 1)[0])(draft_keys, log_p)


def texts(scheme, *, lengths=LENGTHS, language=DRAFT, positions_of=None, is_certain=False):
    """`[B, LENGTH]` tokens written in rounds, and how many drafts the first round accepted."""
    sampler = tpu_inference.rejection_sampler(scheme, max_draft_tokens=2)
    keys = request_keys(len(lengths))
    text = np.full((len(lengths), 3 * LENGTH + 3), -1)
    done, previous = np.zeros(len(lengths), np.int32), np.full(len(lengths), -1)
    first_accepted = None
    for number in range(LENGTH):
        # The chains of drafts, and the token behind each, by the target.
        chains, p, q, last = [], [], [], previous
        for place in range(2):
            position = done + place
            p.append(rows(language, position, last))
            q.append(rows(TARGET, position, last))
            draft = p[-1].argmax(-1) if is_certain else drafted(scheme, keys, position, p[-1])
            chains.append(np.asarray(draft))
            last = chains[-1]
        before_bonus = np.choose(lengths, [previous, chains[0], chains[1]])
        positions = done if positions_of is None else positions_of(done)
        bonus_probs = rows(TARGET, done + lengths, before_bonus)
        # Of each request the drafts that it has, one behind the other.
        has_draft = np.arange(2) < lengths[:, None]
        chain, p, q = (np.stack(array, 1)[has_draft] for array in (chains, p, q))
        arrays = (chain.astype(np.int32), lengths.astype(np.int32), None if is_certain else p, q)
        if scheme in SHARED:
            noise = {"request_keys": keys, "positions": positions}
            bonus = tpu_inference.bonus_tokens(scheme, bonus_probs, keys, positions + lengths)
        else:
            noise = {"key": jax.random.key(1000 + number)}
            bonus = jax.random.categorical(jax.random.key(2000 + number), jnp.log(bonus_probs))
        answer = np.asarray(sampler(*arrays, bonus, True, **noise))
        emitted = np.full((len(lengths), 3), -1)
        emitted[:, :2][has_draft] = answer[: len(chain)]
        count = (emitted >= 0).sum(1)
        is_whole = answer[len(chain) :] >= 0
        emitted[is_whole, count[is_whole]] = answer[len(chain) :][is_whole]
        count += is_whole
        first_accepted = count - 1 if first_accepted is None else first_accepted
        text[np.arange(len(lengths))[:, None], done[:, None] + np.arange(3)] = emitted
        done = (done + count).astype(np.int32)
        previous = emitted[np.arange(len(lengths)), count - 1]
    return text[:, :LENGTH], first_accepted


def text_p_value(tokens):
    counts = np.bincount(sequence_number(tokens, LENGTH), minlength=TOKENS**LENGTH)
    return oracles.chi_square(counts, sequence_probs(LENGTH))


@pytest.mark.parametrize("scheme", ["single", "block", "gls", "gumbel_topk"])
def test_texts_have_the_law_of_the_target(scheme):
    assert text_p_value(texts(scheme)[0]) > ALPHA


@pytest.mark.parametrize("scheme", ["block", "gls"])
def test_certain_drafts(scheme):
    """Argmax drafts without probabilities, as the engine passes them; accepted with probability q."""
    tokens, accepted = texts(scheme, is_certain=True)
    assert text_p_value(tokens) > ALPHA
    expected = TARGET[0, 0, DRAFT[0, 0].argmax()]
    count = int((accepted[LENGTHS == 1] > 0).sum())
    assert oracles.binomial(count, (LENGTHS == 1).sum(), expected) > ALPHA


def test_block_accepts_more_than_single():
    """P(both accepted) is E[w_2] by enumeration; token by token a product."""
    block = single = 0.0
    for x in range(TOKENS):
        for y in range(TOKENS):
            p = np.array([DRAFT[0, 0, x], DRAFT[1, x + 1, y]])
            q = np.array([TARGET[0, 0, x], TARGET[1, x + 1, y]])
            ratios = np.divide(q, p, out=np.zeros(2), where=p > 0)
            block += p.prod() * min(1, min(1, ratios[0]) * ratios[1])
            single += p.prod() * np.minimum(1, ratios).prod()
    assert block > single + 0.01
    has_two = LENGTHS == 2
    for scheme, expected in (("block", block), ("single", single)):
        count = int((texts(scheme)[1][has_two] == 2).sum())
        assert oracles.binomial(count, has_two.sum(), expected) > ALPHA


def test_a_text_is_a_function_of_its_key():
    """Under strong invariance neither drafter, nor lengths of drafts, nor neighbours change it."""
    texts_of_keys, accepted = texts("gumbel_topk")
    others, others_accepted = texts("gumbel_topk", lengths=LENGTHS[::-1], language=TARGET)
    np.testing.assert_array_equal(texts_of_keys, others)
    assert (accepted != others_accepted).any()


def test_wrong_positions_are_found():
    """Planted: a position that stays the same in every round, so that noise is used again."""
    tokens, _ = texts("gls", positions_of=np.zeros_like)
    assert text_p_value(tokens) < ALPHA


def problem(lengths, num_categories=4, seed=0):
    rng = np.random.default_rng(seed)
    p, q = rng.dirichlet(np.ones(num_categories), (2, sum(lengths))).astype(np.float32)
    drafts = np.array([rng.choice(num_categories, p=row / row.sum(dtype=float)) for row in p])
    bonus = rng.integers(num_categories, size=len(lengths))
    return drafts.astype(np.int32), np.array(lengths, np.int32), p, q, bonus.astype(np.int32)


def test_padding_changes_nothing():
    """Rows behind the last request, whatever they hold, and requests without drafts behind the last."""
    drafts, lengths, p, q, bonus = problem([2, 0, 3, 1])
    sampler = tpu_inference.rejection_sampler("block", max_draft_tokens=3)
    keys = request_keys(6)
    positions = np.arange(6, dtype=np.int32)
    plain = sampler(
        drafts, lengths, p, q, bonus, True, request_keys=keys[:4], positions=positions[:4]
    )
    padded = sampler(
        np.append(drafts, [3, 3]),
        np.append(lengths, [0, 0]).astype(np.int32),
        np.concatenate([p, np.zeros((2, 4), np.float32)]),
        np.concatenate([q, np.full((2, 4), np.nan, np.float32)]),
        np.append(bonus, [0, 0]),
        True,
        request_keys=keys,
        positions=positions,
    )
    assert padded[:6].tolist() == plain[:6].tolist()
    assert padded[6:8].tolist() == [-1, -1]
    assert padded[8:12].tolist() == plain[6:].tolist()


@pytest.mark.parametrize("do_sampling", [True, False])
def test_form(do_sampling):
    """Own drafts, one more token, -1; and the bonus token after a whole chain only."""
    lengths = [2, 0, 3, 1] * 20
    drafts, counts, p, q, bonus = problem(lengths)
    if not do_sampling:
        q[::2] = jax.nn.one_hot(drafts[::2], 4)
    sampler = tpu_inference.rejection_sampler("single", max_draft_tokens=3)
    answer = np.asarray(sampler(drafts, counts, p, q, bonus, do_sampling, jax.random.key(0)))
    assert answer.dtype == np.int32
    assert answer.shape == (len(drafts) + len(lengths),)
    seen = set()
    for request, length in enumerate(lengths):
        start = sum(lengths[:request])
        own, main = drafts[start : start + length], answer[start : start + length]
        last = answer[len(drafts) + request]
        num_tokens = int((main >= 0).sum())
        if last >= 0:
            assert last == bonus[request]
            assert main.tolist() == own.tolist()
        else:
            assert 1 <= num_tokens <= length
            assert main[: num_tokens - 1].tolist() == own[: num_tokens - 1].tolist()
            assert (main[num_tokens:] == -1).all()
        if not do_sampling:
            best = q[start : start + length].argmax(-1)
            wrong = np.append(np.flatnonzero(own != best), length)[0]
            assert num_tokens == min(wrong + 1, length)
            assert main[:num_tokens].tolist() == best[:num_tokens].tolist()
            assert (last >= 0) == (wrong == length)
        seen.add((length, num_tokens, bool(last >= 0)))
    assert len(seen) > 5


def test_a_chain_that_is_cut_stays_lossless():
    """Drafts beyond `max_draft_tokens` are not accepted; the token there is one of the target."""
    count = 20_000
    p, q = np.array([[0.2, 0.3, 0.5]] * 2, np.float32), np.array([[0.5, 0.3, 0.2]] * 2, np.float32)
    sampler = tpu_inference.rejection_sampler("single", max_draft_tokens=1)
    drafts = np.random.default_rng(1).choice(3, p=[0.2, 0.3, 0.5], size=2 * count).astype(np.int32)
    lengths = np.full(count, 2, np.int32)
    rows = (np.tile(p, (count, 1)), np.tile(q, (count, 1)))
    answer = sampler(drafts, lengths, *rows, np.zeros(count, np.int32), True, jax.random.key(0))
    pairs = np.asarray(answer[: 2 * count]).reshape(count, 2)
    assert (np.asarray(answer[2 * count :]) == -1).all()
    second = pairs[pairs[:, 1] >= 0, 1]
    assert oracles.chi_square(np.bincount(pairs[:, 0], minlength=3), q[0]) > ALPHA
    assert oracles.chi_square(np.bincount(second, minlength=3), q[0]) > ALPHA


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "old", "old rbg"])
def test_keys_of_every_kind(implementation):
    drafts, lengths, p, q, bonus = problem([2, 1])
    sampler = tpu_inference.rejection_sampler("single", max_draft_tokens=2)
    keys = [
        jax.random.PRNGKey(seed, impl=implementation.removeprefix("old").strip() or None)
        if implementation.startswith("old")
        else jax.random.key(seed, impl=implementation)
        for seed in range(40)
    ]
    answers = {tuple(sampler(drafts, lengths, p, q, bonus, True, key).tolist()) for key in keys}
    assert len(answers) > 1


def test_under_jit_on_other_platforms_and_in_strict_modes():
    """One program, with the engine's arguments traced, that lowers for GPUs and TPUs."""
    sampler = tpu_inference.rejection_sampler("block", max_draft_tokens=3)
    arrays = problem([2, 0, 3, 1])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        plain = sampler(*arrays, True, jax.random.key(0)).tolist()
    with jax.numpy_dtype_promotion("strict"):
        compiled = jax.jit(sampler, static_argnums=5)
        assert compiled(*arrays, True, jax.random.key(0)).tolist() == plain

    def lowered(*arrays):
        return sampler(*arrays, True, jax.random.key(0))

    jax.export.export(jax.jit(lowered), platforms=("cuda", "tpu"))(*arrays)


@pytest.mark.parametrize(
    ("scheme", "noise", "message"),
    [
        ("single", {}, "key: expected a key to sample with"),
        ("gls", {"key": jax.random.key(0)}, "needs request_keys and positions"),
        ("single", {"positions": np.zeros(2, np.int32)}, "expected both or none"),
        (
            "single",
            {"request_keys": request_keys(3), "positions": np.zeros(2, np.int32)},
            r"request_keys: expected shape \[2\], got \[3\]",
        ),
    ],
)
def test_bad_input(scheme, noise, message):
    sampler = tpu_inference.rejection_sampler(scheme, max_draft_tokens=2)
    with pytest.raises(ValueError, match=message):
        sampler(*problem([2, 1]), True, **noise)


ENGINE = Path("results/public_samplers/packages/tpu_inference-0.32.0-py3-none-any.whl")


@pytest.mark.skipif(not ENGINE.exists(), reason="make samplers downloads the engine's own function")
@pytest.mark.parametrize("has_draft_probs", [True, False])
def test_beside_the_engines_own_function(has_draft_probs):
    """Equal answers where nothing is left to chance; equal first tokens and lengths elsewhere, in law."""
    file = "tpu_inference/layers/jax/sample/rejection_sampler.py"
    engine = package_files.module(
        "tpu-inference", "0.32.0", file, ENGINE.parent, ("tpu_inference",)
    ).rejection_sample
    own = tpu_inference.rejection_sampler("single", max_draft_tokens=3)
    drafts, lengths, p, q, bonus = problem([2, 0, 3, 1] * 50)
    q[::2] = jax.nn.one_hot(drafts[::2], 4)
    for certain_q in (q, np.asarray(jax.nn.one_hot(q.argmax(-1), 4))):
        arrays = (drafts, lengths, p if has_draft_probs else None, certain_q, bonus)
        for do_sampling in (False,) if certain_q is q else (False, True):
            answers = [f(*arrays, do_sampling, jax.random.key(0)) for f in (engine, own)]
            assert answers[0].tolist() == answers[1].tolist()
    # One problem for all requests: both have the acceptance and the law of the target.
    count = 20_000
    lengths, bonus = np.full(count, 1, np.int32), np.zeros(count, np.int32)
    drafts = np.random.default_rng(0).choice(3, p=[0.2, 0.3, 0.5], size=count).astype(np.int32)
    p, q = (np.tile(np.float32(row), (count, 1)) for row in ([0.2, 0.3, 0.5], [0.5, 0.3, 0.2]))
    for function in (engine, own):
        probs = p if has_draft_probs else None
        answer = np.asarray(function(drafts, lengths, probs, q, bonus, True, jax.random.key(1)))
        counts = np.bincount(answer[:count], minlength=3)
        assert oracles.chi_square(counts, q[0]) > ALPHA
        ratios = np.minimum(q[0], p[0] if has_draft_probs else q[0] * p[0])
        assert oracles.binomial(int((answer[count:] >= 0).sum()), count, ratios.sum()) > ALPHA


@pytest.mark.parametrize("scheme", ["block", "gls"])
def test_inside_shard_map(scheme):
    """As the engine calls it: requests over a mesh axis, the step's key on every device."""
    drafts, lengths, p, q, bonus = problem([2, 0, 3, 1])
    sampler = tpu_inference.rejection_sampler(scheme, max_draft_tokens=3)
    arrays = (drafts, lengths, p, q, bonus, request_keys(4), np.arange(4, dtype=np.int32))

    def forward(drafts, lengths, p, q, bonus, keys, positions, key):
        noise = {"request_keys": keys, "positions": positions} if scheme == "gls" else {}
        return sampler(drafts, lengths, p, q, bonus, True, key, **noise)

    mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,))
    data, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    specs = (*[data] * len(arrays), everywhere)
    sharded = jax.jit(jax.shard_map(forward, mesh=mesh, in_specs=specs, out_specs=data))
    key = jax.random.key(0)
    assert sharded(*arrays, key).tolist() == forward(*arrays, key).tolist()


@pytest.mark.parametrize("do_sampling", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target_probs": jnp.ones((2, 4)) / 4},
            r"target_probs: expected shape \[3, N\], got \[2, 4",
        ),
        ({"target_probs": jnp.ones(3) / 4}, r"target_probs: expected shape \[3, N\], got \[3\]"),
        (
            {"draft_probs": jnp.ones((2, 4)) / 4},
            r"draft_probs: expected shape \[3, 4\], got \[2, 4",
        ),
        (
            {"num_draft_tokens": jnp.array([2, 2])},
            "num_draft_tokens: expected numbers with a sum of",
        ),
        ({"bonus_token_ids": jnp.array([1])}, r"bonus_token_ids: expected shape \[2\], got \[1\]"),
    ],
)
def test_shapes_that_do_not_fit(change, message, do_sampling):
    arrays = {
        "draft_token_ids": jnp.zeros(3, jnp.int32),
        "num_draft_tokens": jnp.array([2, 1]),
        "draft_probs": None,
        "target_probs": jnp.ones((3, 4)) / 4,
        "bonus_token_ids": jnp.array([1, 2]),
    }
    sample = tpu_inference.rejection_sampler("block", max_draft_tokens=2)
    with pytest.raises(ValueError, match=message):
        sample(**(arrays | change), do_sampling=do_sampling, key=jax.random.key(0))


def test_a_step_without_requests():
    sample = tpu_inference.rejection_sampler("block", max_draft_tokens=2)
    none = jnp.zeros(0, jnp.int32)
    for do_sampling in (True, False):
        padding = sample(jnp.zeros(3, int), none, None, jnp.ones((3, 4)) / 4, none, do_sampling)
        assert padding.tolist() == [-1] * 3


def test_a_key_that_is_none():
    sample = tpu_inference.rejection_sampler("block", max_draft_tokens=1)
    arrays = jnp.zeros(1, jnp.int32), jnp.array([1]), None, jnp.ones((1, 4)) / 4, jnp.array([1])
    with pytest.raises(ValueError, match="key: expected a key as of"):
        sample(*arrays, True, 0)
