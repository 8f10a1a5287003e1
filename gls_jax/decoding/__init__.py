"""Batched speculative decoding for any scheme and any model.

:func:`generate` and :func:`stream` are all that most users need. A round of theirs has the steps
below, shown with two bigram models over four tokens. Row `i` of a table is the distribution after
token `i`:

>>> import jax, jax.numpy as jnp
>>> from gls_jax import decoding
>>> from gls_jax.decoding import engine, preparation
>>> p = jnp.array([[1, 5, 3, 1], [1, 1, 4, 4], [2, 1, 1, 6], [7, 1, 1, 1]]) / 10
>>> q = jnp.array([[1, 4, 4, 1], [1, 1, 6, 2], [1, 1, 1, 7], [6, 2, 1, 1]]) / 10
>>> bigram = lambda log_table, tokens: log_table[tokens]
>>> drafter = decoding.from_function(bigram, jnp.log(p), 4)
>>> target = decoding.from_function(bigram, jnp.log(q), 4)
>>> options = decoding.DecodeOptions(num_drafts=2, draft_length=3, max_new_tokens=8)
>>> key, prompts = jax.random.key(17), [[3, 0]]
>>> prepared = preparation.prepare(key, target, drafter, prompts, None, options)
>>> config, requests, text, *_ = prepared
>>> state = engine.prefill(config, requests, text)
>>> draft, read, select_and_keep = engine.PARTS

*Draft.* After the text `3 0` the drafter proposes two chains of three tokens. They are a tree,
whose nodes are stored level by level:

>>> drafts, drafter_caches = draft(config, requests, state, state.drafter_caches)
>>> drafts.tree.tokens.reshape(3, 2).T.tolist()
[[1, 2, 3], [2, 1, 3]]

*Read.* The target reads the last token of the text and all six drafts in one call, a forward pass.
A mask lets each draft see the text and the earlier drafts of its chain. The logits are those of
seven next tokens, and the cache holds the text and all drafts after it:

>>> reading, cache = read(config, requests, state, drafts.tree, state.target_cache)
>>> reading.logits.shape, cache.tokens[0, 0, :8].tolist()
((1, 7, 4), [3, 0, 1, 2, 2, 1, 3, 3])

*Select.* At each position the target draws its token with the noise that the drafter used. After
`3 0` that is 2, the first draft of the second chain: accepted. After `3 0 2` it is 1, the next
draft: accepted. After `3 0 2 1` it is 2, but 3 was drafted. The round ends, with two accepted
drafts and three new tokens, for one call of the target:

>>> caches = (drafter_caches, ())  # no other drafter observes the target
>>> state = select_and_keep(config, requests, state, drafts, reading, caches, cache)
>>> state.text.tokens[0, :5].tolist(), state.histogram.tolist()
([3, 0, 2, 1, 2], [[0, 0, 1, 0]])

*Keep.* The same step has moved the accepted drafts to the slots after the text and discarded the
others. The last token is not in the cache; the next round reads it together with its drafts:

>>> num_filled = int(state.target_cache.length[0])
>>> state.target_cache.tokens[0, 0, :num_filled].tolist()
[3, 0, 2, 1]

Such rounds make up a text. Here 64 new tokens take 20 rounds; plain generation would take 64:

>>> generation = decoding.generate(key, target, drafter, prompts, num_drafts=2, draft_length=3)
>>> generation.lengths.tolist(), generation.metrics.rounds
([64], 20)
"""

from gls_jax.decoding.choice import Auto, auto
from gls_jax.decoding.generation import BrokenLogits, Generation, Stream, generate, stream
from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.sampling_parameters import check_sampling, log_probs
from gls_jax.decoding.tree_shape import BestFirstTree, MarginTree
from gls_jax.decoding.uncached import from_function, ngram_lookup

__all__ = [
    "Auto",
    "BestFirstTree",
    "BrokenLogits",
    "DecodeOptions",
    "Generation",
    "LanguageModel",
    "MarginTree",
    "Metrics",
    "Stream",
    "auto",
    "check_sampling",
    "from_function",
    "generate",
    "log_probs",
    "ngram_lookup",
    "stream",
]
