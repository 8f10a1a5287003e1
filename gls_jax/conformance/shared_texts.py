"""Several rounds of a scheme that drafts chains and verifies trees: the text that they make.

Noise that was used in one round, or in one branch, must not come back in a way that biases what
follows. Only whole texts show that.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import schemes
from gls_jax.conformance import emitted
from gls_jax.conformance.calling import Caller, VerifierError
from gls_jax.conformance.languages import LANGUAGES, Language
from gls_jax.conformance.session import Example, Session, Step
from gls_jax.schemes import draft_tree

__all__ = ["CHECK", "TEXT_NAMES", "check_texts"]

CHECK = "texts of several rounds"
_CHAIN = 2  # drafts of a chain in a round
_LENGTH = 3  # tokens of a text, so that it takes two rounds or three
_MOST_CHAINS = 3

TEXT_NAMES = ("plain", "similar rows")
"""The languages."""


def check_texts(session: Session, scheme: Any, caller: Caller) -> list[Step]:
    """The steps: one chain and several, in two languages."""
    limit = session.options.max_drafts or getattr(scheme, "max_drafts", None) or _MOST_CHAINS
    steps: list[Step] = []
    for num_chains in sorted({1, min(_MOST_CHAINS, limit)}):
        generate = partial(_text, scheme, num_chains)
        # One compiled program for all languages.
        options = session.options
        texts = Caller(generate, noise="key", seconds=options.time_limit)
        for name in TEXT_NAMES:
            if options.wants(name):
                step = partial(_check, session, texts, caller, _language(name), num_chains)
                steps.append((name, step))
    return steps


def _language(name: str) -> Language:
    """One of :data:`LANGUAGES`, or one whose rows differ little: noise used twice shows there."""
    if name in LANGUAGES:
        return LANGUAGES[name]
    tables = []
    for seed in (3, 4):
        table = np.random.default_rng(seed).dirichlet(np.ones(3), (_LENGTH + _CHAIN, 4))
        table = 0.8 * table[:, :1] + 0.2 * table
        # At one position drafter and target agree.
        table[2] = np.random.default_rng(9).dirichlet(np.ones(3), 4)
        tables.append(table.astype(np.float32))
    return Language(name, *tables)


def _check(
    session: Session, texts_of: Caller, caller: Caller, language: Language, num_chains: int
) -> None:
    keys = session.keys(session.options.num_trials, "texts", language.name, num_chains)
    positions = np.arange(_LENGTH + _CHAIN + 1)
    tables = tuple(
        emitted.logs(table[np.minimum(positions, len(table) - 1)])
        for table in (language.p, language.q)
    )

    def example(trial: int | None) -> Example:
        shown: dict[str, Any] = {"num_chains": num_chains, "draft_length": _CHAIN}
        if trial is not None:
            shown["key"] = emitted.described_key(keys[trial])
        return shown

    with session.usable_answers(language.name, example) as usable:
        texts = texts_of.answers(keys, (), tables, seconds=session.seconds_per_problem)
        caller.calls = caller.calls or texts_of.calls
        usable.num_trials = len(texts)
        is_outside = ((texts < 0) | (texts >= language.num_categories)).any(1)
        if is_outside.any():
            trial = int(is_outside.argmax())
            raise VerifierError(f"expected a text, got {texts[trial].tolist()}", trial)
        what = f"with {num_chains} chains of {_CHAIN} drafts a round"
        session.outcomes.append(emitted.text_distribution(CHECK, language, texts, what, example))


def _text(scheme: Any, num_chains: int, key: Any, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """`_LENGTH` tokens, in as many rounds as it takes."""

    def one_round(state, _):
        tokens, done, previous = state
        start = jnp.minimum(done, _LENGTH - 1)
        emitted_tokens, length = _round(scheme, num_chains, key, start, previous, log_p, log_q)
        extended = jax.lax.dynamic_update_slice(tokens, emitted_tokens, (done,))
        goes_on = done < _LENGTH
        tokens = jnp.where(goes_on, extended, tokens)
        previous = jnp.where(goes_on, emitted_tokens[length], previous)
        done = jnp.where(goes_on, done + length + 1, done)
        return (tokens, done, previous), None

    # Of 32 bits also where JAX's default is 64.
    no_tokens = jnp.full(_LENGTH + _CHAIN + 1, -1, jnp.int32)
    start = (no_tokens, jnp.int32(0), jnp.int32(-1))
    (tokens, _, _), _ = jax.lax.scan(one_round, start, None, length=_LENGTH)
    return tokens[:_LENGTH]


def _round(scheme: Any, num_chains: int, key, start, previous, log_p, log_q):
    """Tokens of one round, -1 behind them, and how many drafts are accepted."""
    is_ranked = getattr(scheme, "ranked", False)
    tokens = jnp.zeros((num_chains, _CHAIN), jnp.int32)
    last_tokens = jnp.full(num_chains, previous)
    for t in range(_CHAIN):
        # A chain's parents and draft index depend on the tokens before.
        parents = draft_tree.chains(tokens).parents.reshape(num_chains, _CHAIN)[:, t]
        indices = draft_tree.chain_draft_index(tokens, ranked=is_ranked)[:, t]

        def draft(parent, row, index, t=t):
            node_key = scheme.draft_key(key, start, start + t, parent)
            return scheme.propose(node_key, row, num_chains)[index]

        last_tokens = jax.vmap(draft)(parents, log_p[start + t, last_tokens + 1], indices)
        tokens = tokens.at[:, t].set(last_tokens)
    tree = schemes.chains(tokens, ranked=is_ranked)
    row_tokens = jnp.append(previous, tree.tokens)
    target_rows = log_q[start + jnp.append(0, tree.depths + 1), row_tokens + 1]
    draft_rows = log_p[start + tree.depths, row_tokens[tree.parents] + 1]
    path = scheme.verify_tree(key, start, tree, draft_rows, target_rows)
    accepted = jnp.where(path.nodes >= 0, tree.tokens[path.nodes], -1)
    return jnp.append(accepted, -1).at[path.length].set(path.token), path.length
