"""Every public function of the mathematical core as one small call.

For tests that vary how the functions are called.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import gls_jax
from gls_jax import bounds, couplings, decomposition, losses, races, schemes, trials

P = np.log(np.array([0.1, 0.2, 0.3, 0.25, 0.15])).astype(np.float32)
Q = np.log(np.array([0.3, 0.25, 0.05, 0.2, 0.2])).astype(np.float32)
NUM_TOKENS, NUM_DRAFTS = P.size, 2
DRAFTS = np.array([2, 3], np.int32)

Call = Callable[..., object]
"""`(key, log_p, log_q, drafts) -> pytree of arrays`."""

CALLS: dict[str, Call] = {
    "races.exponentials": lambda key, p, q, d: races.exponentials(key, NUM_DRAFTS, NUM_TOKENS),
    "races.uniforms": lambda key, p, q, d: races.uniforms(key, 4),
    "races.darts": lambda key, p, q, d: races.darts(key, 3, 4, NUM_TOKENS),
    "races.first_arrivals": lambda key, p, q, d: races.first_arrivals(
        key, NUM_DRAFTS, jnp.asarray(p), jnp.asarray(q)
    ),
    "races.arrivals": lambda key, p, q, d: races.arrivals(
        jnp.ones(NUM_TOKENS, jnp.float32), jnp.asarray(p, jnp.float32)
    ),
    "races.weights": lambda key, p, q, d: races.weights(jnp.asarray(p, jnp.float32)),
    "races.winner": lambda key, p, q, d: races.winner(jnp.asarray(p, jnp.float32)),
    "races.exponentials_at": lambda key, p, q, d: races.exponentials_at(
        key, NUM_DRAFTS, jnp.asarray(d)
    ),
    "races.exponentials_from_bits": lambda key, p, q, d: races.exponentials_from_bits(
        *jax.random.key_data(key)
    ),
    "races.new_key": lambda key, p, q, d: jax.random.key_data(races.new_key(d[0])),
    "races.split_key": lambda key, p, q, d: jax.random.key_data(races.split_key(key)),
    "races.position_key": lambda key, p, q, d: jax.random.key_data(races.position_key(key, 7)),
    "races.private_key": lambda key, p, q, d: jax.random.key_data(races.private_key(key)),
    "races.stream_key": lambda key, p, q, d: jax.random.key_data(races.stream_key(key, 1)),
    "races.candidates": lambda key, p, q, d: races.candidates(key, d, 2),
    "races.bins": lambda key, p, q, d: races.bins(key, d, 3),
    "races.smallest_exponentials": lambda key, p, q, d: races.smallest_exponentials(key, d),
    "races.stream_exponentials": lambda key, p, q, d: races.stream_exponentials(
        key, d, NUM_DRAFTS, 1
    ),
    "list_sample": lambda key, p, q, d: gls_jax.list_sample(key, p, q, NUM_DRAFTS),
    "couplings.gumbel": lambda key, p, q, d: couplings.gumbel(key, p, q),
    "couplings.weighted_minhash": lambda key, p, q, d: couplings.weighted_minhash(key, p, q),
    "couplings.first_dart": lambda key, p, q, d: couplings.first_dart(key, p),
    "couplings.maximal": lambda key, p, q, d: couplings.maximal(key, p, q),
    "couplings.dart_protocol": lambda key, p, q, d: couplings.dart_protocol(key, p, q, 0.01),
    "couplings.gumbel_match": lambda key, p, q, d: couplings.gumbel_match(p, q),
    "couplings.minhash_match": lambda key, p, q, d: couplings.minhash_match(p, q),
    "couplings.maximal_match": lambda key, p, q, d: couplings.maximal_match(p, q),
    "bounds.list_matching": lambda key, p, q, d: bounds.list_matching(p, q, NUM_DRAFTS),
    "bounds.list_matching_given_target": lambda key, p, q, d: bounds.list_matching_given_target(
        p, q, NUM_DRAFTS
    ),
    "bounds.list_matching_relaxed": lambda key, p, q, d: bounds.list_matching_relaxed(
        p, q, NUM_DRAFTS
    ),
    "bounds.list_matching_strong": lambda key, p, q, d: bounds.list_matching_strong(
        p, q, 1, NUM_DRAFTS
    ),
    "bounds.communication_free": lambda key, p, q, d: bounds.communication_free(p, q),
    "bounds.total_variation": lambda key, p, q, d: bounds.total_variation(p, q),
    "bounds.optimum_iid": lambda key, p, q, d: bounds.optimum_iid(p, q, NUM_DRAFTS),
    "bounds.optimum": lambda key, p, q, d: bounds.optimum(p, q, jnp.exp(jnp.asarray(q))),
    "bounds.optimum_distinct": lambda key, p, q, d: bounds.optimum_distinct(p, q, NUM_DRAFTS),
    "bounds.prefix_order": lambda key, p, q, d: bounds.prefix_order(p, q),
    "bounds.list_decoding": lambda key, p, q, d: bounds.list_decoding(p, NUM_DRAFTS, 4),
    "decomposition.selected_distribution": lambda key, p, q, d: decomposition.selected_distribution(
        lambda drafts: jnp.arange(NUM_DRAFTS) == jnp.argmin(drafts), p, NUM_DRAFTS
    ),
    "decomposition.always_accepts": lambda key, p, q, d: decomposition.always_accepts(
        p, q, NUM_DRAFTS
    ),
    "schemes.gls.acceptance_active": lambda key, p, q, d: schemes.gls.acceptance_active(
        p, q, 1, NUM_DRAFTS
    ),
    "schemes.gumbel_topk.acceptance_interval": lambda key, p, q, d: (
        schemes.gumbel_topk.acceptance_interval(p, q, (NUM_DRAFTS,))
    ),
    "schemes.specinfer_wor.acceptance_estimate": lambda key, p, q, d: (
        schemes.specinfer_wor.acceptance_estimate(key, p, q, NUM_DRAFTS, 4)
    ),
    "losses.acceptance": lambda key, p, q, d: losses.acceptance(
        p, q, scheme="gls", num_drafts=NUM_DRAFTS
    ),
}


def _scheme_calls(name: str, called: set) -> dict[str, Call]:
    """Calls of a scheme, without the functions that it shares with an earlier one.

    `called` holds pairs of a function and the number of drafts that it was called with.
    """
    scheme = schemes.get(name)
    num_drafts = scheme.max_drafts or NUM_DRAFTS

    def verify_tree(key, p, q, d):
        tree = schemes.chains(jnp.asarray(d)[:num_drafts, None], ranked=scheme.ranked)
        log_p = jnp.stack([jnp.asarray(p)] * num_drafts)
        log_q = jnp.stack([jnp.asarray(q)] * (num_drafts + 1))
        return scheme.verify_tree(key, 0, tree, log_p, log_q)

    verify = scheme.verification.verify if scheme.verifies_tokens else None
    calls: dict[str, tuple[object, Call]] = {
        "propose": (scheme.propose_fn, lambda key, p, q, d: scheme.propose(key, p, num_drafts)),
        "verify": (
            verify,
            lambda key, p, q, d: scheme.verify(key, d[:num_drafts], p, q),
        ),
        "acceptance": (
            scheme.exact and scheme.exact.curve,
            lambda key, p, q, d: scheme.acceptance(p, q, num_drafts),
        ),
        # Without separate trials a scheme's are made of its `verify`, anew for every name.
        "accepted": (
            scheme.trials.accepted if scheme.trials else verify and name,
            lambda key, p, q, d: scheme.accepted(key, p, q, num_drafts),
        ),
        "inversion_trial": (
            scheme.trials and scheme.trials.inversion,
            lambda key, p, q, d: scheme.inversion_trial(p, q, num_drafts)(key),
        ),
        "verify_tree": (name, verify_tree),
    }
    new = {
        kind: call
        for kind, (function, call) in calls.items()
        if function and (function, num_drafts) not in called
    }
    called.update((function, num_drafts) for function, _ in calls.values())
    return {f"schemes.{name}.{kind}": call for kind, call in new.items()}


_called: set = set()
for _name in (*schemes.NAMES, *schemes.PATH_NAMES):
    CALLS |= _scheme_calls(_name, _called)

# One scheme for each way to make a trial: in one pass, by ratio tests, and from `propose` and
# `verify`.
for _name in ("gls", "specinfer", "optimal"):
    CALLS[f"trials.acceptance.{_name}"] = lambda key, p, q, d, name=_name: trials.acceptance(
        key, p, q, scheme=name, num_drafts=NUM_DRAFTS, num_trials=9
    )
CALLS |= {
    "trials.sweep": lambda key, p, q, d: trials.sweep(
        key,
        jnp.asarray(p)[None],
        jnp.asarray(q)[None],
        scheme="gls",
        num_drafts=(1, 2),
        num_trials=9,
        method="inversion",
    )
}
