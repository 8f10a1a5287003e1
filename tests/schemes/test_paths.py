"""Whole trees: what comes out has the law of the target, over one round and over several.

The language is a Markov chain on three tokens whose laws change with the position, so that every sequence has a known
probability. Each statistical test fails a correct scheme with probability at most ALPHA for another key.
"""

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import races, schemes, trials
from gls_jax.schemes import draft_tree
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_compilation")

ALPHA = 1e-9
TRIALS = 40_000
TOKENS, LENGTH = 3, 2
SCHEMES = [schemes.get(name) for name in (*schemes.NAMES, *schemes.PATH_NAMES)]


def language(seed):
    """`[position, previous token + 1, token]`; one law has a zero, one position is alike for both languages.

    Laws depend little on the previous token, so that clocks used twice show.
    """
    laws = np.random.default_rng(seed).dirichlet(np.ones(TOKENS), (6, TOKENS + 1))
    laws = 0.8 * laws[:, :1] + 0.2 * laws
    laws[1, 1] = [0.5, 0.5, 0]
    laws[2] = np.random.default_rng(9).dirichlet(np.ones(TOKENS), TOKENS + 1)
    return laws


DRAFT, TARGET = language(3), language(4)
with np.errstate(divide="ignore"):
    LOG_DRAFT, LOG_TARGET = (jnp.asarray(np.log(laws), jnp.float32) for laws in (DRAFT, TARGET))


def probability(sequence):
    previous = (-1, *sequence)
    return np.prod([TARGET[t, previous[t] + 1, x] for t, x in enumerate(sequence)])


def law_of_sequences(length):
    return np.array([probability(s) for s in itertools.product(range(TOKENS), repeat=length)])


def code(tokens, length):
    return np.asarray(tokens[:, :length]) @ TOKENS ** np.arange(length - 1, -1, -1)


def draft_chains(scheme, key, start, previous, num_chains, draft_key):
    """K chains drafted position by position, each in its slot."""
    tokens = jnp.zeros((num_chains, LENGTH), jnp.int32)
    before = jnp.full(num_chains, previous)
    for t in range(LENGTH):
        contexts = draft_tree.chains(tokens).parents.reshape(num_chains, LENGTH)[:, t]
        slots = draft_tree.chain_draft_index(tokens, ranked=scheme.ranked)[:, t]

        def draft(context, law, slot, t=t):
            return scheme.propose(
                draft_key(scheme, key, start, start + t, context), law, num_chains
            )[slot]

        before = jax.vmap(draft)(contexts, LOG_DRAFT[start + t, before + 1], slots)
        tokens = tokens.at[:, t].set(before)
    return draft_tree.chains(tokens, ranked=scheme.ranked)


def draft_branching(scheme, key, start, previous, widths, draft_key):
    """A static tree, node by node."""
    drafts = draft_tree.branching(widths)
    tokens = jnp.asarray(drafts.tokens)
    for node, (parent, slot, depth) in enumerate(
        zip(drafts.parents, drafts.draft_index, drafts.depths, strict=True)
    ):
        law = LOG_DRAFT[start + depth, (previous if parent == 0 else tokens[parent - 1]) + 1]
        made = scheme.propose(
            draft_key(scheme, key, start, start + depth, parent), law, drafts.list_size
        )
        tokens = tokens.at[node].set(made[slot])
    return dataclasses.replace(drafts, tokens=tokens)


def laws_of(drafts, start, previous):
    """`log_p [n, N]` at each node's context, `log_q [n + 1, N]`."""
    before = jnp.append(previous, drafts.tokens)  # the token before what each context asks for
    log_q = LOG_TARGET[start + jnp.append(0, drafts.depths + 1), before + 1]
    return LOG_DRAFT[start + drafts.depths, before[drafts.parents] + 1], log_q


def right_key(scheme, *where):
    return scheme.draft_key(*where)


def round_of(scheme, key, start, previous, shape, draft_key=right_key):
    """One round from `start`: tokens emitted `[LENGTH + 1]` (-1 behind them), and the path."""
    if isinstance(shape, tuple):
        drafts = draft_branching(scheme, key, start, previous, shape, draft_key)
    else:
        drafts = draft_chains(scheme, key, start, previous, shape, draft_key)
    path = scheme.verify_tree(key, start, drafts, *laws_of(drafts, start, previous))
    kept = jnp.where(path.nodes >= 0, drafts.tokens[path.nodes], -1)
    return jnp.append(kept, -1).at[path.length].set(path.token), path


@cache
def generator(scheme, shape, length, draft_key=right_key):
    """`length` tokens by as many rounds as it takes, and the length of the first path; compiled, lifted over keys."""

    def run(key):
        def one_round(state, _):
            tokens, done, previous = state
            out, path = round_of(
                scheme, key, jnp.minimum(done, length - 1), previous, shape, draft_key
            )
            live = done < length
            tokens = jnp.where(live, jax.lax.dynamic_update_slice(tokens, out, (done,)), tokens)
            previous = jnp.where(live, path.token, previous)
            return (tokens, jnp.where(live, done + path.length + 1, done), previous), path.length

        start = (jnp.full(length + LENGTH + 1, -1), jnp.array(0), jnp.array(-1))
        (tokens, _, _), accepted = jax.lax.scan(one_round, start, None, length=length)
        return tokens[:length], accepted[0]

    return jax.jit(jax.vmap(run))


def keys(count=TRIALS, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def shapes(scheme):
    if scheme.max_drafts == 1:
        return [1]
    return [1, 3, (2, 2)] if scheme.ranked else [1, 3]


def name_of(value):
    return getattr(
        value, "name", getattr(value, "__name__", str(value))
    )  # never an address: workers must agree


CASES = [(scheme, shape) for scheme in SCHEMES for shape in shapes(scheme)]


def fails(scheme, shape, draft_key=right_key, count=TRIALS):
    tokens, _ = generator(scheme, shape, 3, draft_key)(keys(count))
    return (
        oracles.chi_square(np.bincount(code(tokens, 3), minlength=TOKENS**3), law_of_sequences(3))
        < ALPHA
    )


@pytest.mark.parametrize(
    ("scheme", "shape"),
    [
        case
        for case in CASES
        if case[0].name in ("block", "traversal", "gls", "specinfer", "specinfer_wor")
    ],
    ids=name_of,
)
def test_text_has_the_law_of_the_target(scheme, shape):
    """Both whole-path schemes, and of the walk each kind of list; tests/decoding has the same for every scheme."""
    assert not fails(scheme, shape)


@pytest.mark.parametrize(
    ("scheme", "shape"), [c for c in CASES if c[0].invariance == "strong"], ids=name_of
)
def test_strong_schemes_emit_what_plain_generation_emits(scheme, shape):
    """Whatever the drafts: the token of (key, position, target) alone, and for `gls_strong` of K, its streams."""
    num_slots = max(shape) if isinstance(shape, tuple) else shape

    def plain(key):
        previous, out = jnp.array(-1), []
        for t in range(3):
            nothing, log_q = jnp.zeros(num_slots, jnp.int32), LOG_TARGET[t, previous + 1]
            previous = scheme.verify(races.position_key(key, t), nothing, log_q, log_q, nothing > 0)
            out.append(previous)
        return jnp.stack(out)

    tokens, _ = generator(scheme, shape, 3)(keys(2000))
    np.testing.assert_array_equal(tokens, jax.jit(jax.vmap(plain))(keys(2000)))


def test_block_is_traversal_of_one_chain():
    """The same noise, and so the same path and token."""
    one, other = (generator(schemes.get(name), 1, 3)(keys()) for name in ("block", "traversal"))
    # The one race of `traversal` is the first stream of `block`: the drafts are the same too.
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_block_accepts_as_much_as_its_weights_say():
    """P(at least i accepted) = E[w_i], by enumeration; token by token it is the product of min(1, q / p)."""
    block, single = np.zeros(LENGTH), np.zeros(LENGTH)
    for drafts in itertools.product(range(TOKENS), repeat=LENGTH):
        previous, chance, joint, apart = -1, 1.0, [1.0], [1.0]
        for t, x in enumerate(drafts):
            p, q = DRAFT[t, previous + 1, x], TARGET[t, previous + 1, x]
            previous, chance = x, chance * p
            joint.append(min(1, joint[-1] * q / p) if p else 0)
            apart.append(apart[-1] * min(1, q / p) if p else 0)
        block += chance * np.array(joint[1:])
        single += chance * np.array(apart[1:])
    assert block.sum() > single.sum() + 0.01
    for name, expected in (("block", block), ("single", single)):
        _, accepted = generator(schemes.get(name), 1, 3)(keys())
        for i in range(LENGTH):
            assert oracles.binomial(int((accepted > i).sum()), TRIALS, expected[i]) > ALPHA


def test_traversal_at_depth_one_accepts_as_specinfer_without_replacement():
    p, q = LOG_DRAFT[0, 0], LOG_TARGET[0, 0]
    traversal = schemes.get("traversal")

    def trial(key):
        drafts = traversal.propose(traversal.draft_key(key, 0, 0, 0), p, 2)
        laws = jnp.stack([q, LOG_TARGET[1, 1], LOG_TARGET[1, 2]])
        return traversal.verify_tree(
            key, 0, schemes.chains(drafts[:, None], ranked=True), jnp.stack([p, p]), laws
        ).length

    hits = int(jax.vmap(trial)(keys()).sum())
    assert (
        oracles.binomial(hits, TRIALS, float(schemes.get("specinfer_wor").acceptance(p, q, 2)))
        > ALPHA
    )


def test_more_is_accepted_by_looking_at_whole_trees():
    """Traversal against the token-level walk on the same shape: mean accepted length over 40,000 rounds."""
    means = {}
    for name in ("traversal", "specinfer_wor"):
        _, accepted = generator(schemes.get(name), (2, 2), 3)(keys())
        means[name] = float(accepted.mean())
    assert means["traversal"] > means["specinfer_wor"] + 0.01


@pytest.mark.parametrize("name", ["minhash", "spectr"])
def test_equal_languages_accept_everything(name):
    """Other schemes in tests/robustness/test_clients.py, on hostile laws."""
    scheme, laws = schemes.get(name), LOG_TARGET[0, 0]

    def trial(key):
        tokens = [
            scheme.propose(scheme.draft_key(key, 5, 5 + t, t), laws, 1) for t in range(LENGTH)
        ]
        drafts = schemes.chains(jnp.stack(tokens, axis=1), ranked=scheme.ranked)
        return scheme.verify_tree(
            key, 5, drafts, jnp.tile(laws, (2, 1)), jnp.tile(laws, (3, 1))
        ).length

    assert bool((jax.jit(jax.vmap(trial))(keys(500)) == LENGTH).all())


@pytest.mark.parametrize("name", ["specinfer", "gls_strong", "traversal"])
def test_a_dead_node_is_not_there(name):
    """Two chains, the second one switched off: it is never accepted, and the first one sometimes."""
    scheme = schemes.get(name)

    def trial(key):
        both = draft_chains(scheme, key, 0, -1, 2, right_key)
        alone = dataclasses.replace(both, alive=jnp.array([True, True, False, False]))
        return scheme.verify_tree(key, 0, alone, *laws_of(both, 0, -1)).nodes

    assert set(np.unique(jax.jit(jax.vmap(trial))(keys(2000)))) == {-1, 0, 1}


def pruned(name, alive_of):
    """Tokens of a round of two drafts at one context, of which `alive_of(tokens)` are used; and their target law."""
    scheme, p, q = (
        schemes.get(name),
        jnp.log(jnp.array([0.2, 0.3, 0.5])),
        jnp.log(jnp.array([0.3, 0.4, 0.3])),
    )

    def trial(key):
        tokens = scheme.propose(scheme.draft_key(key, 0, 0, 0), p, 2)
        drafts = schemes.chains(tokens[:, None], ranked=scheme.ranked)
        drafts = dataclasses.replace(drafts, alive=alive_of(tokens))
        path = scheme.verify_tree(key, 0, drafts, jnp.tile(p, (2, 1)), jnp.tile(q, (3, 1)))
        return jnp.where(path.length > 0, tokens[path.nodes[0]], path.token)

    tokens = jax.jit(jax.vmap(trial))(keys())
    return oracles.chi_square(np.bincount(tokens, minlength=TOKENS), np.exp(q))


@pytest.mark.parametrize("name", ["poisson", "gumbel_topk", "gls", "traversal"])
def test_only_strong_schemes_may_prune_by_what_was_drafted(name):
    """The rule that `Tree.alive` states, and that it is needed."""
    fair = schemes.get(name).invariance == "strong"
    assert (pruned(name, lambda tokens: tokens > 0) > ALPHA) == fair


@pytest.mark.parametrize("name", ["traversal", "specinfer_wor", "gls", "gumbel_topk"])
def test_a_missing_rank_biases_nothing(name):
    """The second draft without the first, chosen beforehand."""
    assert pruned(name, lambda tokens: jnp.array([False, True])) > ALPHA


# Bad input


@pytest.mark.parametrize("name", schemes.PATH_NAMES)
@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda s, p: s.verify(jax.random.key(0), jnp.zeros(1, int), p, p), "verify"),
        (lambda s, p: s.acceptance(p, p, 1), "acceptance"),
        (lambda s, p: s.acceptance_curve(p, p, (1,)), "acceptance"),
        (lambda s, p: s.accepted(jax.random.key(0), p, p, 1), "accepted"),
        (
            lambda s, p: trials.acceptance(
                jax.random.key(0), p, p, scheme=s, num_drafts=1, num_trials=5
            ),
            "hits",
        ),
    ],
)
def test_what_whole_path_schemes_lack(name, call, what):
    message = f"scheme '{name}' verifies whole paths and has no {what} of one position; expected verify_tree"
    with pytest.raises(ValueError, match=message):
        call(schemes.get(name), LOG_DRAFT[0, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(drafts=3), "tree: expected a gls_jax.schemes.Tree, got int"),
        (dict(log_q=LOG_TARGET[0, :2]), r"log_q: expected shape \[5, N\]"),
        (dict(log_p=LOG_TARGET[0, :2]), r"log_p: expected shape \[4, N\]"),
        (dict(position=1.5), "position: expected one int within 0..4294967292, got 1.5"),
        (dict(position=-1), r"position: expected one int within 0..\d+, got -1"),
        (dict(position=np.arange(2)), r"position: expected one int within 0..\d+, got ndarray"),
        (
            dict(scheme="spectr", log_p=LOG_DRAFT[0, np.array([0, 1, 1, 1])]),
            "scheme 'spectr' draws all siblings from one distribution, got different ones for nodes 0 and 2",
        ),
        (
            dict(log_p=jnp.log(jnp.eye(3)[np.ones(4, int)])),
            "tree.tokens: expected tokens of positive probability",
        ),
        (
            dict(log_p=None),
            "log_p: scheme 'specinfer' needs the law each node was drawn from, got None",
        ),
        (dict(key=3), "typed key"),
        (
            dict(drafts=schemes.chains(jnp.full((2, 2), 3))),
            "tree.tokens: expected tokens within 0..2, got 3",
        ),
        (dict(scheme="block"), "scheme 'block' takes at most 1, got 2"),
        (dict(parents=[0, 3, 0, 1]), "tree.parents: expected 0..1 for node 1, got 3"),
        (dict(parents=[0, 1, -1, 1]), "tree.parents: expected 0..2 for node 2, got -1"),
        (dict(draft_index=[0, 0, 2, 0]), "tree.draft_index: expected 0..1 for node 2, got 2"),
        (
            dict(draft_index=[0, 0, 0, 0]),
            "tree.draft_index: expected different draft_index for the children of one context",
        ),
        (
            dict(alive=[False, True, True, True]),
            "tree.alive: expected the parent of node 1 to be alive",
        ),
        (
            dict(depths=[0, 0, 0, 0]),
            r"tree.depths: expected \[0, 1, 0, 1\] below depth 2, got \[0, 0, 0, 0\]",
        ),
        (
            dict(draft_index=[0, 0, 0]),
            r"tree.draft_index: expected integer of shape \[n\], one for each token, got int",
        ),
        (dict(alive=[1, 1, 1, 1]), r"tree.alive: expected bool of shape \[n\]"),
    ],
)
def test_bad_trees(change, message):
    given = dict(
        scheme="specinfer", key=jax.random.key(0), drafts=schemes.chains(jnp.zeros((2, 2), int))
    )
    given |= dict(
        log_p=jnp.tile(LOG_DRAFT[0, 0], (4, 1)), log_q=jnp.tile(LOG_DRAFT[0, 0], (5, 1)), position=0
    )
    given |= change
    fields = {
        name: np.array(change[name])
        for name in ("parents", "slots", "alive", "depths")
        if name in change
    }
    if fields:
        given["drafts"] = dataclasses.replace(given["drafts"], **fields)
    with pytest.raises(ValueError, match=message):
        scheme = schemes.get(given["scheme"])
        scheme.verify_tree(
            given["key"], given["position"], given["drafts"], given["log_p"], given["log_q"]
        )


def test_chains_are_integers():
    for tokens in (jnp.zeros(3, int), jnp.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"tokens: expected integers of shape \[K, L\], got"):
            schemes.chains(tokens)
    with pytest.raises(
        ValueError, match=r"tokens: expected shape \[K, L\] with K, L >= 1, got \[0, 2\]"
    ):
        schemes.chains(jnp.zeros((0, 2), int))


# Planted defects: keys that are right for token-level schemes, and wrong for those that look at whole paths.


def clocks_of_the_position(scheme, key, start, position, context):
    return races.position_key(key, position)


def clocks_of_the_round(scheme, key, start, position, context):
    return scheme.draft_key(key, start, position, 0)


@pytest.mark.parametrize(
    ("name", "shape", "defect"),
    [("block", 1, clocks_of_the_position), ("traversal", 3, clocks_of_the_round)],
    ids=name_of,
)
def test_planted_defects_are_caught(name, shape, defect):
    assert fails(schemes.get(name), shape, defect, count=100_000)
