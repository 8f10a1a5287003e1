"""Rounds of speculative decoding along known texts of the target, counted without decoding anew.

A text of plain generation is read once. Then the tokens of some first rounds can be counted along
it in two ways.

*Predicted*: with the distributions of both models along the text the planner knows where rounds
begin and end, on average over the drafts that could have been made there. This is for chains and
static trees of schemes that verify token by token, and costs no model call.

*Replayed*: under strong invariance the text does not depend on the drafts. So the engine runs as
always, with the drafter and the keys of the text, and the text itself is the target. This is for
trees whose shape depends on the drafts. (Margin trees learn from the target's distributions, so
they need the target: their rounds are along the same texts, but decoded.)
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PRNGKeyArray

from experiments import decoding_runs
from experiments.decoding_runs import Setting
from gls_jax import decoding, distributions, planner, races, schemes
from gls_jax.distributions.pairs import Pairs
from gls_jax.exact.counting import LEAST_EMITTED
from gls_jax.loops import map_in_batches
from gls_jax.planner import conditional, rounds
from gls_jax.schemes import Scheme
from gls_jax.schemes.function_types import PathVerification, TokenVerification

# Of the settings that are predicted.
MOST_DRAFTS = 16
# Lists at each position from which acceptance is estimated where it has no formula.
_NUM_TRIALS = 256
_TRIAL_SEED = 15
# The longest list whose acceptance is estimated like that.
_LONGEST_LIST = 8
# A logit that leaves no probability.
_IMPOSSIBLE = -1e9


class Texts(NamedTuple):
    """What the target emits after some prompts.

    Attributes:
        prompts: token ids.
        keys: `key[D]`, one for each prompt.
        temperature: of the target.
        tokens: `i32[D, W]`, emitted by plain generation.
    """

    prompts: list[list[int]]
    keys: PRNGKeyArray
    temperature: float
    tokens: np.ndarray

    def part(self, rows: slice) -> Texts:
        """Some of the texts."""
        return Texts(self.prompts[rows], self.keys[rows], self.temperature, self.tokens[rows])


def plain_tokens(target, texts: Texts, new_tokens: int) -> np.ndarray:
    """The tokens of plain generation, `i32[D, new_tokens]`, under the race of strong schemes."""
    setting = Setting("plain", "gumbel_topk", num_drafts=1, temperature=texts.temperature)
    run = decoding_runs.start_run(target, None, texts.prompts, texts.keys, setting, new_tokens)
    return np.asarray(run.finish().tokens)


# Predicted rounds.


def pairs_along(target, drafter, texts: Texts) -> np.ndarray:
    """Log-probabilities of drafter and target at every token of all texts, `f32[2, D * W, N]`.

    Column 0 is the token that the text has there. The drafter is at temperature 1 where the target
    is at 0, as the engine does it for drafts without noise.
    """
    documents = [
        distributions.Document([*prompt, *tokens.tolist()], len(prompt))
        for prompt, tokens in zip(texts.prompts, texts.tokens, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        dump = distributions.write(
            folder,
            target.language_model,
            drafter,
            # Each text is a chunk.
            lambda first: iter([[document] for document in documents[first:]]),
            distributions.Sampling(
                temperature=texts.temperature,
                draft_temperature=texts.temperature or 1.0,
                top_k=decoding_runs.TOP_K,
            ),
            num_positions=texts.tokens.size,
            context_length=max(len(document.tokens) for document in documents),
            num_kept=decoding_runs.TOP_K,
            metadata={"own_text": True},
        )
        return np.stack(dump.pairs(tails="merged"))


class Predictor:
    """Expected rounds along texts, from the distributions along them.

    Args:
        pairs: of :func:`pairs_along`.
        num_texts: `D`.
        num_rounds: at most, from the beginning of each text.
    """

    def __init__(self, pairs: np.ndarray, num_texts: int, num_rounds: int) -> None:
        self._pairs = Pairs(*pairs)
        self._num_texts = num_texts
        self._num_rounds = num_rounds
        self._kernels = cache(self._kernels_of)

    def counts(self, setting: planner.Setting) -> np.ndarray:
        """Expected tokens and rounds of each text, `f64[2, D]`."""
        return self._counts_of(self._survival(setting))

    def ceiling(self, scheme: str, num_candidates: int, depth: int) -> np.ndarray:
        """The same for a tree that has the first candidates of every node, down to this depth.

        It would be too large to verify. It is an upper bound for every tree of these candidates. A
        tree that knew the emitted tokens would reach it with one node for each level.
        """
        kernels = self._kernels(scheme, num_candidates)
        return self._counts_of(rounds.tree_survival(kernels, (num_candidates,) * depth))

    def _counts_of(self, survival: np.ndarray) -> np.ndarray:
        depth = survival.shape[1]
        survival = survival.reshape(self._num_texts, -1, depth)
        length = survival.shape[1]
        # emission[:, t, n]: a round that begins at t emits n + 1 tokens.
        at_least = np.pad(
            survival, ((0, 0), (0, 0), (1, 1)), constant_values=((0, 0), (0, 0), (1, 0))
        )
        emission = at_least[:, :, :-1] - at_least[:, :, 1:]
        # Tokens beyond the end of the text are not delivered.
        num_left = length - np.arange(length)[:, None]
        delivered = np.minimum(np.arange(1, depth + 2), num_left)
        expected_tokens = np.sum(emission * delivered, axis=-1)

        # Where each round begins, one after the other.
        begins = np.zeros((self._num_texts, length))
        begins[:, 0] = 1
        counts = np.zeros((2, self._num_texts))
        for _ in range(self._num_rounds):
            counts += [np.sum(begins * expected_tokens, axis=1), np.sum(begins, axis=1)]
            following = np.zeros((self._num_texts, length + depth + 1))
            for n in range(depth + 1):
                following[:, n + 1 : n + 1 + length] += begins * emission[:, :, n]
            begins = following[:, :length]
        return counts

    def _survival(self, setting: planner.Setting) -> np.ndarray:
        verification = schemes.get(setting.scheme).verification
        if isinstance(verification, PathVerification):
            assert verification.survival is not None  # `block`
            return verification.survival(*self._pairs, setting.draft_length)
        # A kernel of K drafts has those of fewer, except that `gls_strong` looks at K streams.
        is_own = setting.scheme == "gls_strong"
        num_drafts = setting.num_drafts if is_own else MOST_DRAFTS
        kernels = self._kernels(setting.scheme, num_drafts)
        return rounds.shape_survival(setting.shape, kernels)

    def _kernels_of(self, name: str, num_drafts: int) -> np.ndarray:
        if name in conditional.NAMES:
            num_drafts = schemes.get(name).max_drafts or num_drafts
            return conditional.kernels(*self._pairs, scheme=name, num_drafts=num_drafts)
        return _estimated_kernels(schemes.get(name), *self._pairs)


def _estimated_kernels(scheme: Scheme, log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Kernels of a scheme that has no formula, for static trees only, `f64[P, K + 1, K + 1]`.

    Only the probability that none of J new drafts is accepted is there, in column 0. Expected
    numbers of tokens and of rounds are sums of products of estimates at different positions, which
    are independent. So both are unbiased, but for the floor of probabilities, and their ratio
    nearly so.
    """
    keys = races.keys.fold_in_each(races.new_key(_TRIAL_SEED), np.arange(len(log_q)))
    hits = np.asarray(_accepted_and_emitted(keys, log_p, log_q, scheme), float)
    emitted_probs = np.exp(np.maximum(log_q[:, :1], LEAST_EMITTED))
    kernels = np.zeros((len(log_q), _LONGEST_LIST + 1, _LONGEST_LIST + 1))
    kernels[:, 0, 0] = 1
    kernels[:, 1:, 0] = 1 - hits / emitted_probs
    return kernels


@partial(jax.jit, static_argnames="scheme")
def _accepted_and_emitted(keys, log_p, log_q, scheme: Scheme):
    """How often token 0 is emitted and in the list, for lists of 1, 2, ... drafts: `f32[P, K]`."""
    verification = scheme.verification
    assert isinstance(verification, TokenVerification)

    def at_position(position):
        key, log_p, log_q = position

        def trial(number):
            trial_key = jax.random.fold_in(key, number)
            drafts = scheme.propose_fn(trial_key, log_p, _LONGEST_LIST)
            hits = []
            for length in range(1, _LONGEST_LIST + 1):
                first, active = drafts[:length], jnp.ones(length, bool)
                token = verification.verify(trial_key, first, log_p, log_q, active)
                hits.append((token == 0) & jnp.any(first == 0))
            return jnp.stack(hits)

        return jnp.mean(jax.vmap(trial)(jnp.arange(_NUM_TRIALS)), axis=0)

    return map_in_batches(at_position, (keys, log_p, log_q), 4)


# Replayed rounds.


class _NoCache(NamedTuple):
    """The cache of a target that reads nothing."""

    length: Any


def recorded_target(texts: Texts, vocab_size: int) -> decoding.LanguageModel:
    """A target that emits these texts, whatever the noise, and costs nothing.

    Its logits depend on the position alone, and only those at nodes on the text are right. A scheme
    that verifies token by token looks at no others.
    """
    width = max(map(len, texts.prompts)) + texts.tokens.shape[1]
    whole_texts = np.zeros((len(texts.prompts), width), np.int32)
    for row, (prompt, tokens) in enumerate(zip(texts.prompts, texts.tokens, strict=True)):
        whole_texts[row, : len(prompt) + len(tokens)] = [*prompt, *tokens]
    return decoding.LanguageModel(
        params=jnp.asarray(whole_texts),
        apply=_RecordedLogits(vocab_size),
        init_cache=_no_cache,
        vocab_size=vocab_size,
        keep=_keep_nothing,
    )


@dataclasses.dataclass(frozen=True)
class _RecordedLogits:
    """`apply` of a recorded target, a frozen dataclass so that `jit` reuses the program."""

    vocab_size: int

    def __call__(
        self, params: Array, tokens: Array, positions: Array, mask: Array | None, cache: Any
    ) -> tuple[Array, Any]:
        after = jnp.minimum(positions + 1, params.shape[1] - 1)
        emitted = jnp.take_along_axis(params, after, axis=1)[..., None]
        logits = jnp.where(jnp.arange(self.vocab_size) == emitted, 0.0, _IMPOSSIBLE)
        return logits, cache._replace(length=cache.length + tokens.shape[1])


def _no_cache(batch: int, length: int) -> _NoCache:
    return _NoCache(jnp.zeros(batch, jnp.int32))


def _keep_nothing(cache: _NoCache, cache_slots, start, count) -> _NoCache:
    return _NoCache(start + count)


def counts_along(target, drafter, texts: Texts, setting: Setting, num_rounds: int) -> np.ndarray:
    """Tokens and rounds of each text, `i64[2, D]`, for a strongly invariant scheme.

    Args:
        target: that of the texts, or :func:`recorded_target` of them.
        drafter: the drafter.
        texts: with the keys of the plain generation.
        setting: what is drafted.
        num_rounds: from the beginning of each text, fewer where it ends.
    """
    run = decoding_runs.start_run(
        target, drafter, texts.prompts, texts.keys, setting, texts.tokens.shape[1]
    )
    for _ in range(num_rounds):
        next(run, None)
    metrics = run.generation.metrics
    return np.stack([metrics.emitted, metrics.target_calls])
