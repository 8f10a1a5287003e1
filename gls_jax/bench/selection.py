"""One step of verification: against drawing its noise, and against transformers."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import races, schemes
from gls_jax.bench import measure
from gls_jax.bench.measure import VOCABULARY, Line, seconds, vocabulary_laws

__all__ = ["SUITE", "against_transformers", "verifying"]


def verifying(name: str, batch: int = 1) -> Callable[[int], Line]:
    """`verify` at a vocabulary against drawing the noise of 8 streams, the least that GLS must do."""

    def benchmark(repeats: int) -> Line:
        scheme = schemes.get(name)
        num_drafts = scheme.max_drafts or 8
        log_p, log_q = vocabulary_laws()
        keys = races.split_key(races.new_key(0), batch)
        drafts = jax.vmap(lambda key: scheme.propose(key, log_p, num_drafts))(keys)
        laws = [jnp.tile(law, (batch, 1)) for law in (log_p, log_q)]
        verify = jax.jit(jax.vmap(scheme.verify))
        draw = jax.jit(jax.vmap(lambda key: races.exponentials(key, 8, VOCABULARY)))
        first = seconds(lambda: jax.block_until_ready(verify(keys, drafts, *laws)))
        turns = measure.turns(
            lambda: jax.block_until_ready(verify(keys, drafts, *laws)),
            lambda: jax.block_until_ready(draw(keys)),
            repeats,
        )
        own, peer = (np.array(turn) for turn in turns)
        return {
            "benchmark": f"verify {name}, N={VOCABULARY}, K={num_drafts}, batch {batch}",
            "seconds": round(float(np.median(own)), 5),
            "noise_seconds": round(float(np.median(peer)), 5),
            "ratio": round(float(np.median(own / peer)), 2),
            "compile_seconds": round(first - float(np.median(own)), 2),
        }

    return benchmark


def against_transformers(
    name: str, num_items: int = 32_000, length: int = 4, batch: int = 64
) -> Callable[[int], Line]:
    """One draft of four tokens: `verify_tree` against `transformers`' speculative sampling, the
    same laws.
    """

    def benchmark(repeats: int) -> Line:
        try:
            import torch
            from transformers.generation.utils import _speculative_sampling
        except ModuleNotFoundError:
            return {
                "benchmark": f"{name} against transformers",
                "skipped": "needs the peers extra (make peers)",
            }
        scheme = schemes.get(name)
        z = (
            np.random.default_rng(0).normal(size=(2, length + 1, num_items)).astype(np.float32)
            * 2.5
        )
        drafter, target = z[0], 0.8 * z[0] + 0.2 * z[1]
        log_p = jax.nn.log_softmax(jnp.asarray(drafter[:length]))
        key = races.new_key(0)
        tokens = [
            scheme.propose(scheme.draft_key(key, 0, t, t), law, 1) for t, law in enumerate(log_p)
        ]
        tree = schemes.chains(jnp.stack(tokens, axis=1), ranked=scheme.ranked)
        keys = races.split_key(key, batch)
        # Logits in, as there: the normalisation is part of the step.
        step = lambda key, p, q: scheme.verify_tree(
            key, 0, tree, jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        )
        one, many = (
            jax.jit(step),
            jax.jit(lambda keys, p, q: jax.lax.map(lambda key: step(key, p, q), keys)),
        )
        given = jnp.asarray(drafter[:length]), jnp.asarray(target)
        ids = torch.tensor(np.stack([np.array(t)[0] for t in tokens])[None].astype(np.int64))
        logits = torch.tensor(drafter[None, :length]), torch.tensor(target[None])
        peer = lambda: _speculative_sampling(ids, logits[0], length, logits[1], False)  # noqa: E731
        first = seconds(lambda: jax.block_until_ready(one(key, *given)))
        turns = measure.turns(lambda: jax.block_until_ready(one(key, *given)), peer, 5 * repeats)
        jax.block_until_ready(many(keys, *given))
        own, other = (np.array(turn) for turn in turns)
        return {
            "benchmark": f"{name} against transformers, N={num_items}, K=1, L={length}",
            "milliseconds": round(1e3 * float(np.median(own)), 3),
            "milliseconds_in_a_loop": round(
                1e3 * seconds(lambda: jax.block_until_ready(many(keys, *given))) / batch, 3
            ),
            "transformers_milliseconds": round(1e3 * float(np.median(other)), 3),
            "ratio": round(float(np.median(other / own)), 2),
            "compile_seconds": round(first - float(np.median(own)), 2),
        }

    return benchmark


SUITE = (
    *(verifying(name) for name in schemes.NAMES if name != "optimal"),
    *(
        verifying(name, 64)
        for name in schemes.NAMES
        if name not in ("optimal", "weighted_importance")
    ),
    *(against_transformers(name) for name in ("specinfer", "spectr")),
)
