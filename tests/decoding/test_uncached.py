"""Models without a cache of activations."""

import jax.numpy as jnp

from gls_jax import decoding


def test_lookup_drafts_what_came_before():
    lookup = decoding.ngram_lookup(20, longest=2)
    text = [3, 4, 5, 9, 4, 5, 7, 3, 4, 5]

    def token_after(text):
        tokens, positions = jnp.array([text]), jnp.arange(len(text))[None]
        logits, _ = lookup.apply((), tokens, positions, None, lookup.init_cache(1, 16))
        return int(logits[0, -1].argmax())

    assert token_after(text) == 7  # the later of the two positions after 4, 5
    assert token_after(text[:5]) == 5  # only the last token was seen before
    assert token_after([8, 6]) == 6  # nothing was
