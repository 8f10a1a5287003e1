"""Drafts of a drafter that has probabilities for some of the tokens only, and their verification.

Where drafter and target share noise, the drafts are those of a drafter with all tokens that gives
the others probability 0. Only the R tokens' noise is drawn.

A scheme that reads the draft probabilities gets a smaller problem: the R tokens of the drafter, and
one more that stands for all *others*. The drafter never drafts it, and the target gives it their
mass. If the scheme emits it, the token is drawn from the target's distribution on the others, with
noise of its own. The emitted token then has exactly the target's distribution, and the acceptance
is that of the whole vocabulary, because no scheme accepts what cannot be drafted.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.schemes import Path, Scheme, Tree
from gls_jax.schemes.draft_tree import row_of_node
from gls_jax.typing import Index

__all__ = ["propose_reduced", "verify_reduced"]


def propose_reduced(
    scheme: Scheme,
    key: PRNGKeyArray,
    log_p: Float[Array, "*k R"],
    num_drafts: int,
    tokens: Int[Array, " R"],
    vocab_size: int,
) -> Int[Array, " K"]:
    """The drafts of ``scheme.propose_fn`` for a distribution on `tokens` only.

    Args:
        scheme: any.
        key, num_drafts: as for `propose_fn`.
        log_p: `[R]`, or `[K, R]` for one distribution for each draft.
        tokens: of the drafter, increasing.
        vocab_size: `N`.
    """
    if scheme.propose_among_fn is not None:
        return scheme.propose_among_fn(key, log_p, num_drafts, tokens)
    if scheme.needs_draft_probs or not scheme.samples_drafts:
        # These drafts share no noise with the target.
        return tokens[scheme.propose_fn(key, log_p, num_drafts)]
    whole = jnp.full((*log_p.shape[:-1], vocab_size), -jnp.inf, log_p.dtype)
    return scheme.propose_fn(key, whole.at[..., tokens].set(log_p), num_drafts)


def verify_reduced(
    scheme: Scheme,
    tokens: Int[Array, " R"],
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: Float[Array, "n R"],
    log_q: Float[Array, "n+1 N"],
) -> Path:
    """`scheme.verify_tree` where `log_p` is over `tokens` only.

    Args:
        scheme: one that needs the draft probabilities.
        tokens: of the drafter, increasing.
        key, position, tree, log_q: of :meth:`gls_jax.schemes.Scheme.verify_tree`.
        log_p: the distribution that each node was drawn from.
    """
    num_tokens = tokens.shape[0]
    # The others: their distribution, and the log of their mass.
    is_listed = jnp.zeros(log_q.shape[-1], bool).at[tokens].set(True)
    log_q_of_others = jnp.where(is_listed, -jnp.inf, log_q)
    log_mass = logsumexp(log_q_of_others, axis=-1, keepdims=True)

    # The smaller problem, in which a token is its column.
    reduced_log_q = jnp.concatenate([log_q[:, tokens], log_mass], axis=-1)
    reduced_log_p = jnp.pad(log_p, ((0, 0), (0, 1)), constant_values=-jnp.inf)
    columns = jnp.searchsorted(tokens, tree.tokens).astype(jnp.int32)
    reduced_tree = dataclasses.replace(tree, tokens=columns)
    path = scheme.verify_tree(key, position, reduced_tree, reduced_log_p, reduced_log_q)

    # The token among the others. Schemes fold a private branch once; folded twice, this noise is
    # used nowhere else.
    noise_key = races.private_key(
        races.private_key(races.position_key(key, position + path.length))
    )
    last_node = jnp.max(path.nodes, initial=-1)
    noise = races.exponentials(noise_key, 1, log_q.shape[-1])[0]
    other = races.winner(races.arrivals(noise, log_q_of_others[row_of_node(last_node)]))
    listed = tokens[jnp.minimum(path.token, num_tokens - 1)]
    return path._replace(token=jnp.where(path.token == num_tokens, other, listed).astype(jnp.int32))
