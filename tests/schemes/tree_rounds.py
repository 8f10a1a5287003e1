"""Rounds of speculative decoding in a language whose sequences have known probabilities.

The language is a Markov chain on three tokens whose distributions change with the position. Each
statistical test fails a correct scheme with probability at most ALPHA for another key.
"""

import dataclasses
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import schemes
from gls_jax.schemes import draft_tree
from tests import oracles
from tests.schemes.scheme_trials import TRIALS

TOKENS, LENGTH = 3, 2  # of the vocabulary, and of a chain


def language(seed):
    """`[position, row of the previous token, token]`; row 0 is the beginning, row x + 1 token x.

    One distribution has a zero, and at one position all languages are alike. Distributions depend
    little on the previous token, so that noise that is used twice shows.
    """
    probs = np.random.default_rng(seed).dirichlet(np.ones(TOKENS), (6, TOKENS + 1))
    probs = 0.8 * probs[:, :1] + 0.2 * probs
    probs[1, 1] = [0.5, 0.5, 0]
    probs[2] = np.random.default_rng(9).dirichlet(np.ones(TOKENS), TOKENS + 1)
    return probs


DRAFT, TARGET = language(3), language(4)
with np.errstate(divide="ignore"):
    LOG_DRAFT = jnp.asarray(np.log(DRAFT), jnp.float32)
    LOG_TARGET = jnp.asarray(np.log(TARGET), jnp.float32)


def sequence_probs(length):
    """The target's probability of every sequence, in the order of :func:`sequence_number`."""
    sequences = itertools.product(range(TOKENS), repeat=length)
    return np.array([_probability(sequence) for sequence in sequences])


def _probability(sequence):
    previous = (-1, *sequence)
    return np.prod([TARGET[t, previous[t] + 1, x] for t, x in enumerate(sequence)])


def sequence_number(tokens, length):
    digits = np.asarray(tokens[:, :length])
    return digits @ TOKENS ** np.arange(length - 1, -1, -1)


def right_key(scheme, key, start, position, parent):
    return scheme.draft_key(key, start, position, parent)


def draft_chains(scheme, key, start, previous, num_chains, draft_key):
    """K chains drafted position by position, each at its draft index."""
    tokens = jnp.zeros((num_chains, LENGTH), jnp.int32)
    last_token = jnp.full(num_chains, previous)
    for t in range(LENGTH):
        parents = draft_tree.chains(tokens).parents.reshape(num_chains, LENGTH)[:, t]
        indices = draft_tree.chain_draft_index(tokens, ranked=scheme.ranked)[:, t]

        def draft(parent, log_p, index, t=t):
            node_key = draft_key(scheme, key, start, start + t, parent)
            return scheme.propose(node_key, log_p, num_chains)[index]

        log_p = LOG_DRAFT[start + t, last_token + 1]
        last_token = jax.vmap(draft)(parents, log_p, indices)
        tokens = tokens.at[:, t].set(last_token)
    return draft_tree.chains(tokens, ranked=scheme.ranked)


def draft_branching(scheme, key, start, previous, widths, draft_key):
    """A static tree, node by node."""
    tree = draft_tree.branching(widths)
    tokens = jnp.asarray(tree.tokens)
    for node in range(len(tokens)):
        parent, position = tree.parents[node], start + tree.depths[node]
        is_child_of_root = parent == draft_tree.ROOT
        last_token = previous if is_child_of_root else tokens[draft_tree.node_of_row(parent)]
        node_key = draft_key(scheme, key, start, position, parent)
        drafts = scheme.propose(node_key, LOG_DRAFT[position, last_token + 1], tree.list_size)
        tokens = tokens.at[node].set(drafts[tree.draft_index[node]])
    return dataclasses.replace(tree, tokens=tokens)


def log_probs_of(tree, start, previous):
    """`log_p [n, N]` of each node, and `log_q [n + 1, N]`."""
    last_tokens = jnp.append(previous, tree.tokens)  # of the text of each row
    log_q = LOG_TARGET[start + jnp.append(0, tree.depths + 1), last_tokens + 1]
    log_p = LOG_DRAFT[start + tree.depths, last_tokens[tree.parents] + 1]
    return log_p, log_q


def round_of(scheme, key, start, previous, shape, draft_key=right_key):
    """One round from `start`: tokens emitted `[LENGTH + 1]` (-1 behind them), and the path.

    `shape` is a number of chains, or the widths of a static tree.
    """
    draft = draft_branching if isinstance(shape, tuple) else draft_chains
    tree = draft(scheme, key, start, previous, shape, draft_key)
    path = scheme.verify_tree(key, start, tree, *log_probs_of(tree, start, previous))
    accepted = jnp.where(path.nodes >= 0, tree.tokens[path.nodes], -1)
    return jnp.append(accepted, -1).at[path.length].set(path.token), path


@cache
def generator(scheme, shape, length, draft_key=right_key):
    """`length` tokens in as many rounds as it takes, and the accepted length of the first round.

    Compiled, and lifted over keys.
    """

    def run(key):
        def one_round(state, _):
            tokens, done, previous = state
            start = jnp.minimum(done, length - 1)
            emitted, path = round_of(scheme, key, start, previous, shape, draft_key)
            goes_on = done < length
            extended = jax.lax.dynamic_update_slice(tokens, emitted, (done,))
            tokens = jnp.where(goes_on, extended, tokens)
            previous = jnp.where(goes_on, path.token, previous)
            done = jnp.where(goes_on, done + path.length + 1, done)
            return (tokens, done, previous), path.length

        start = (jnp.full(length + LENGTH + 1, -1), jnp.array(0), jnp.array(-1))
        (tokens, _, _), accepted = jax.lax.scan(one_round, start, None, length=length)
        return tokens[:length], accepted[0]

    return jax.jit(jax.vmap(run))


def keys(count=TRIALS, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def text_p_value(scheme, shape, draft_key=right_key, count=TRIALS):
    """Of three tokens against the target's probabilities of sequences."""
    tokens, _ = generator(scheme, shape, 3, draft_key)(keys(count))
    counts = np.bincount(sequence_number(tokens, 3), minlength=TOKENS**3)
    return oracles.chi_square(counts, sequence_probs(3))


def pruned_p_value(name, alive_of):
    """Of one token after two drafts of one parent, of which `alive_of(tokens)` are alive."""
    scheme = schemes.get(name)
    log_p = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    log_q = jnp.log(jnp.array([0.3, 0.4, 0.3]))

    def trial(key):
        tokens = scheme.propose(scheme.draft_key(key, 0, 0, draft_tree.ROOT), log_p, 2)
        tree = schemes.chains(tokens[:, None], ranked=scheme.ranked)
        tree = dataclasses.replace(tree, alive=alive_of(tokens))
        path = scheme.verify_tree(key, 0, tree, jnp.tile(log_p, (2, 1)), jnp.tile(log_q, (3, 1)))
        return jnp.where(path.length > 0, tokens[path.nodes[0]], path.token)

    tokens = jax.jit(jax.vmap(trial))(keys())
    return oracles.chi_square(np.bincount(tokens, minlength=TOKENS), np.exp(log_q))
