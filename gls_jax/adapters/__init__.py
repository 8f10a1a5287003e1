"""Rejection samplers with the signatures of JAX serving engines, by the schemes of this library.

A user of an engine swaps one import:

* :mod:`gls_jax.adapters.tpu_inference`: `rejection_sample`, one chain of drafts for each request;
* :mod:`gls_jax.adapters.sglang_jax`: `tree_speculative_sampling_target_only` and
  `verify_tree_greedy`, a tree of drafts for each request.

No engine is imported. Everything is traced: `jit` and static shapes, no loop on the host.

**What needs the engine's help.**

*Noise.* An engine passes one key (or uniforms) for a step, so what a request gets depends on its
neighbours and on its place in the batch. With `request_keys`, one for each request for as long as
it lives, and `positions`, the absolute index of the first drafted token (the number of tokens that
prompt and text have so far), it depends on neither: a request's text is that of its key. Schemes
that share noise with the drafter need both.

*Drafter.* Every scheme is lossless with drafts of any kind that are independent of its noise, such
as argmax drafts or n-grams. But `gls` and its relatives accept more only where the drafter draws
from the same noise. The engine's drafting loop must then take its tokens from
``scheme.propose(scheme.draft_key(request_key, start, position, parent), log_p, K)`` in place of
argmax. Schemes that read the draft probabilities need drafts that were drawn from exactly these, at
the request's temperature, with noise that nothing else uses.

*The token after the last draft.* An engine that samples it before it verifies, as tpu-inference,
decides how. Any sample of the target is lossless, but a text is a function of its key only if that
sample is the scheme's: :func:`gls_jax.adapters.tpu_inference.bonus_tokens`.

*Greedy requests.* A batch that is greedy as a whole has an entrance of its own, which compares
arguments of the maximum. A greedy request among others must come as a point mass: probability 1 on
its argmax.
"""

from gls_jax.adapters import sglang_jax, tpu_inference

__all__ = ["sglang_jax", "tpu_inference"]
