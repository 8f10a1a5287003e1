"""What a text depends on: its key, its own request and, with strong schemes, no draft.

Compiled as users compile: programs of other shapes and drafters have to round alike.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gls_jax import decoding
from gls_jax.decoding import MarginTree
from tests.decoding.small import KEY, noisy, prompts_of, table, texts, transformer

STRONG = [
    ("gls_strong", dict(num_drafts=3)),
    ("poisson", dict(num_drafts=3)),
    ("poisson", dict(tree=(3, 2, 1))),
    ("gumbel_topk", dict(tree=MarginTree(12, 3))),
    ("gumbel_topk", dict(num_drafts=4)),
    ("minhash", dict()),
]


@pytest.mark.parametrize(("scheme", "shape"), STRONG, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_strong_schemes_give_the_text_of_plain_generation(scheme, shape):
    """200 prompts, a near, a random and a model-free drafter: token for token, but for ties that rounding decides."""
    prompts, make = prompts_of(200), transformer if scheme == "gumbel_topk" and "tree" in shape else table
    target = make(0)
    ask = dict(scheme=scheme, max_new_tokens=10, temperature=0.7, num_drafts=shape.get("num_drafts", 1))
    plain = texts(decoding.generate(KEY, target, None, prompts, **ask))
    drafters = {"near": noisy(target, 0.5 if make is table else 0.02), "random": make(5)}  # compiled once
    if scheme == "minhash":
        drafters["lookup"] = decoding.ngram_lookup(61)
    for name, drafter in drafters.items():
        found = decoding.generate(KEY, target, drafter, prompts, draft_length=3, **ask | shape)
        flips = sum(a != b for a, b in zip(texts(found), plain, strict=True))
        assert flips <= 1, f"{flips} of 200 texts differ with drafter {name}"
        if name == "near":
            assert found.metrics.block_efficiency > 1.5
    assert plain != texts(decoding.generate(jax.random.key(4), target, None, prompts, **ask))


def test_gls_depends_on_its_drafts_only(target, near):
    """Conditional invariance: another model that drafts the same tokens gives the same text."""
    ask = dict(scheme="gls", num_drafts=3, max_new_tokens=10)
    softer = dataclasses.replace(near, apply=_Sharpened(near.apply))  # greedy drafts are those of any temperature
    one = decoding.generate(KEY, target, near, prompts_of(20), draft_temperatures=0, **ask)
    other = decoding.generate(KEY, target, softer, prompts_of(20), draft_temperatures=0, **ask)
    assert texts(one) == texts(other)


@dataclasses.dataclass(frozen=True)
class _Sharpened:
    apply: object

    def __call__(self, *inputs):
        logits, cache = self.apply(*inputs)
        return logits * 3, cache


@pytest.mark.parametrize("scheme", ["gls", "specinfer", "traversal"])
def test_a_request_does_not_know_who_shares_its_batch(target, near, scheme):
    prompts, keys = prompts_of(6, seed=1), jax.random.split(KEY, 6)
    ask = dict(scheme=scheme, num_drafts=2, draft_length=3, max_new_tokens=9, top_k=20)
    together = texts(decoding.generate(keys, target, near, prompts, **ask))
    backwards = texts(decoding.generate(keys[::-1], target, near, prompts[::-1], **ask))[::-1]
    assert together == backwards
    if scheme == "gls":
        alone = [texts(decoding.generate(keys[r : r + 1], target, near, [prompts[r]], **ask))[0] for r in (0, 3, 5)]
        assert alone == [together[r] for r in (0, 3, 5)]


def test_one_key_is_folded_for_each_request(target):
    keys = jax.vmap(lambda row: jax.random.fold_in(KEY, row))(jnp.arange(3))
    ask = dict(scheme="gls", max_new_tokens=5)
    one, many = (decoding.generate(key, target, None, prompts_of(3), **ask) for key in (KEY, keys))
    assert texts(one) == texts(many)


def test_a_drafter_that_is_the_target_is_always_right(target):
    for shape in (dict(num_drafts=3, draft_length=4), dict(tree=MarginTree(8, 4, 2, 4))):
        found = decoding.generate(KEY, target, target, prompts_of(4), scheme="gumbel_topk", max_new_tokens=10, **shape)
        assert found.metrics.histogram[:, :-1].sum() == 0, shape
