"""The rejection sampler of tpu-inference: one chain of drafts for each request.

Its signature is that of `tpu_inference.layers.jax.sample.rejection_sampler.rejection_sample`
(tpu-inference 0.32.0). In the engine, one line replaces its function::

    from gls_jax.adapters import tpu_inference

    rejection_sample = tpu_inference.rejection_sampler("block", max_draft_tokens=4)

`"block"` accepts whole chains jointly: on average never fewer tokens than the engine's test of one
token after another (`"single"`), from the same arguments and by the same law. Where the engine
passes no draft probabilities, as 0.32.0 does, drafts count as certain and both accept alike.

With `"gls"`, `"gumbel_topk"` and other schemes of shared randomness the target samples from the
key and the position, and never reads `draft_probs`; see :mod:`gls_jax.adapters` for what the engine
has to give.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gls_jax import checks, schemes, work_shape
from gls_jax.adapters.engine_keys import checked_keys, keys_from_step, request_noise
from gls_jax.schemes import Scheme
from gls_jax.schemes.tree_walk import token_without_drafts
from gls_jax.typing import Numbers

__all__ = ["RejectionSampler", "bonus_tokens", "rejection_sampler"]

_PADDING = -1


def rejection_sampler(scheme: str = "block", *, max_draft_tokens: int) -> RejectionSampler:
    """A function of the engine's signature that verifies with a scheme.

    Args:
        scheme: name of any scheme; each position has one draft.
        max_draft_tokens: the engine's number of speculative tokens, static. Of a longer chain the
            drafts after these are not looked at, which is lossless.

    Raises:
        ValueError: an unknown scheme, or `max_draft_tokens` below 1.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.adapters import tpu_inference
    >>> rejection_sample = tpu_inference.rejection_sampler("block", max_draft_tokens=2)
    >>> probs = jnp.full((3, 5), 0.2)  # drafts of two requests, two and one; p = q
    >>> drafts, lengths, bonus = jnp.array([4, 0, 3]), jnp.array([2, 1]), jnp.array([1, 2])
    >>> rejection_sample(drafts, lengths, probs, probs, bonus, True, jax.random.key(0)).tolist()
    [4, 0, 3, 1, 2]
    """
    return RejectionSampler(schemes.get(scheme), checks.count(max_draft_tokens, "max_draft_tokens"))


@dataclasses.dataclass(frozen=True)
class RejectionSampler:
    """The function that :func:`rejection_sampler` makes.

    Attributes:
        scheme: verifies the drafts.
        max_draft_tokens: of one request.
    """

    scheme: Scheme
    max_draft_tokens: int

    def __call__(
        self,
        draft_token_ids: Numbers,
        num_draft_tokens: Numbers,
        draft_probs: Numbers | None,
        target_probs: Numbers,
        bonus_token_ids: Numbers,
        do_sampling: bool,
        key: PRNGKeyArray | None = None,
        *,
        request_keys: Key[Array, " B"] | None = None,
        positions: Numbers | None = None,
    ) -> Int[Array, " T+B"]:
        """Verify the drafts of a batch; `jit` with `do_sampling` static.

        Args:
            draft_token_ids: `i32[T]`, the chains of all requests one behind the other, then
                padding.
            num_draft_tokens: `i32[B]`, drafts of each request, also 0.
            draft_probs: `[T, N]`, the distribution each draft was drawn from; None where it was
                certain.
            target_probs: `[T, N]`, the target's probabilities at the place of each draft; where
                `do_sampling` is False any scores, such as logits.
            bonus_token_ids: `i32[B]`, the token after a chain that is accepted as a whole.
            do_sampling: False compares drafts with the largest score, True samples.
            key: of this step. Needed to sample without `request_keys`.
            request_keys: `[B]` typed keys, one for each request in all its steps.
            positions: `i32[B]`, absolute position of each request's first draft.

        Returns:
            `i32[T + B]`: at the places of the drafts the accepted ones, and behind them one token
            in place of the first that is not; -1 elsewhere. Then the bonus token of each request
            whose drafts are all accepted, or -1.

        Raises:
            ValueError: no key, or one of `request_keys` and `positions` without the other, or
                shapes that do not fit.
        """
        drafts = checks.integers(draft_token_ids, "draft_token_ids", "[T]")
        lengths = checks.integers(num_draft_tokens, "num_draft_tokens", "[B]")
        bonus = checks.integers(bonus_token_ids, "bonus_token_ids", "[B]")
        checks.has_shape(bonus, "bonus_token_ids", lengths.shape[0])
        target_probs = checks.floats(target_probs, "target_probs")
        checks.has_shape(target_probs, "target_probs", drafts.shape[0], None)
        if draft_probs is not None:
            draft_probs = checks.floats(draft_probs, "draft_probs")
            checks.has_shape(draft_probs, "draft_probs", *target_probs.shape)
        batch = _Batch(drafts, lengths, bonus)
        known = checks.known_values(lengths)
        if known is not None and known.size and (known.min() < 0 or known.sum() > drafts.size):
            raise ValueError(
                f"num_draft_tokens: expected numbers with a sum of at most {drafts.size}, "
                f"got {known.tolist()}"
            )
        if drafts.size == 0:
            return bonus
        # A step without requests: all rows are padding.
        if lengths.size == 0:
            return jnp.full(drafts.shape, _PADDING, jnp.int32)
        # The engine passes logits then, and no key.
        if not do_sampling:
            return _verified_greedily(batch, target_probs)
        # Noise of the requests, or of this step.
        noise = request_noise(request_keys, positions, lengths.shape[0])
        if noise is None:
            noise = self._noise_of_step(key, lengths.shape[0])
        arrays = (*noise, batch, draft_probs, target_probs)
        static = (self.scheme, self.max_draft_tokens)
        return work_shape.compiled(_verified, arrays, static)

    def _noise_of_step(self, key: PRNGKeyArray | None, num_requests: int):
        """Keys and positions of the requests from the key of one step."""
        if self.scheme.invariance != "none":
            raise ValueError(
                f"request_keys: scheme '{self.scheme.name}' shares noise with the drafter and "
                "needs request_keys and positions, got None"
            )
        if key is None:
            raise ValueError("key: expected a key to sample with, got None")
        return keys_from_step(key, num_requests), jnp.zeros(num_requests, jnp.int32)


def bonus_tokens(
    scheme: str,
    target_probs: Numbers,
    request_keys: Key[Array, " B"],
    positions: Numbers,
) -> Int[Array, " B"]:
    """The tokens after chains that are accepted as a whole, from the noise of their positions.

    Instead of the engine's own samples, so that a text is a function of its key.

    Args:
        scheme: name of the scheme that verifies.
        target_probs: `[B, N]`, the target's probabilities after the last draft.
        request_keys: `[B]` typed keys.
        positions: `i32[B]`, absolute positions of these tokens: that of the first draft plus the
            number of drafts.

    Raises:
        ValueError: an unknown scheme, or shapes that do not fit.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.adapters import tpu_inference
    >>> keys, probs = jax.random.split(jax.random.key(0), 2), jnp.array([[0.0, 1, 0], [0, 0, 1]])
    >>> tpu_inference.bonus_tokens("gls", probs, keys, jnp.array([7, 9])).tolist()
    [1, 2]
    """
    log_q = jnp.log(checks.floats(target_probs, "target_probs"))
    keys, first_positions = checked_keys(request_keys, positions, log_q.shape[0])
    verifier = schemes.get(scheme)

    def sample(key, position, log_q):
        return token_without_drafts(key, position, log_q, verifier, 1)

    return jax.vmap(sample)(keys, first_positions, log_q)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Batch:
    """Chains one behind the other, and where each begins."""

    drafts: Int[Array, " T"]
    lengths: Int[Array, " B"]
    bonus: Int[Array, " B"]

    @property
    def starts(self) -> Int[Array, " B"]:
        return jnp.cumsum(self.lengths, dtype=jnp.int32) - self.lengths

    def flattened(
        self, num_accepted: Int[Array, " B"], token: Int[Array, " B"]
    ) -> Int[Array, " T+B"]:
        """The answer: accepted drafts, the token after them, and -1; then the bonus tokens."""
        rows = jnp.arange(self.drafts.shape[0], dtype=jnp.int32)
        # Padding belongs to no request.
        request = jnp.searchsorted(jnp.cumsum(self.lengths, dtype=jnp.int32), rows, side="right")
        place = rows - self.starts.at[request].get(mode="clip")
        last = num_accepted.at[request].get(mode="fill", fill_value=-1)
        replaced = jnp.where(place == last, token.at[request].get(mode="clip"), _PADDING)
        main = jnp.where(place < last, self.drafts, replaced)
        bonus = jnp.where(num_accepted == self.lengths, token, _PADDING)
        return jnp.concatenate([main, bonus]).astype(jnp.int32)


def _verified_greedily(batch: _Batch, scores: Float[Array, "T N"]) -> Int[Array, " T+B"]:
    """Drafts are accepted up to the first that has not the largest score."""
    best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    num_rows = batch.drafts.shape[0]
    # How many mistakes there are before each row; rows of one request are neighbours.
    mistakes = jnp.pad(jnp.cumsum(batch.drafts != best, dtype=jnp.int32), (1, 0))
    before = mistakes[batch.starts]
    place_of_first = jnp.searchsorted(mistakes, before + 1).astype(jnp.int32) - 1
    num_accepted = jnp.minimum(place_of_first - batch.starts, batch.lengths)
    first = jnp.minimum(batch.starts + num_accepted, num_rows - 1)
    token = jnp.where(num_accepted == batch.lengths, batch.bonus, best[first])
    return batch.flattened(num_accepted, token)


def _verified(
    keys: Key[Array, " B"],
    positions: Int[Array, " B"],
    batch: _Batch,
    draft_probs: Float[Array, "T N"] | None,
    target_probs: Float[Array, "T N"],
    scheme: Scheme,
    max_draft_tokens: int,
) -> Int[Array, " T+B"]:
    """The chains as trees, with a row behind the last draft that emits the bonus token."""
    num_categories = target_probs.shape[-1]
    last_row = batch.drafts.shape[0] - 1

    def point_mass(tokens):
        return jax.nn.one_hot(tokens, num_categories, dtype=jnp.float32)

    def verify(key, position, start, length, bonus):
        # A row more than drafts; what stands behind the chain is another request's, and not alive.
        rows = jnp.minimum(start + jnp.arange(max_draft_tokens + 1, dtype=jnp.int32), last_row)
        tokens = batch.drafts[rows[:-1]]
        # Behind a chain that is cut, the target's own row; behind a whole one, the bonus token.
        is_row = jnp.arange(max_draft_tokens + 1, dtype=jnp.int32) < length
        q = jnp.where(is_row[:, None], target_probs[rows], point_mass(bonus))
        # A draft without probabilities was certain.
        p = point_mass(tokens) if draft_probs is None else draft_probs[rows[:-1]]
        tree = dataclasses.replace(
            schemes.chains(tokens[None], ranked=scheme.ranked), alive=is_row[:-1]
        )
        log_p, log_q = (jnp.log(probs.astype(jnp.float32)) for probs in (p, q))
        return scheme.verify_tree(key, position, tree, log_p, log_q)

    path = jax.vmap(verify)(keys, positions, batch.starts, batch.lengths, batch.bonus)
    return batch.flattened(path.length, path.token)
