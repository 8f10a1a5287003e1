"""The decode loop: what is compiled, and what invalid logits do."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring

from gls_jax import decoding
from gls_jax.decoding import MarginTree
from tests.decoding.tiny_models import KEY, random_prompts, texts, trigram_model

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def compiled():
    """Names of the functions that were compiled since the last `clear`."""
    names = []

    def listen(event, _, **details):
        if "backend_compile" in event:
            names.append(details.get("fun_name"))

    monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


def test_prompts_of_another_length_compile_nothing(target, near, compiled):
    """Nor do other numbers of new tokens, as long as they round up to the same sizes, and other parameters."""
    for shape in (dict(num_drafts=2), dict(scheme="gumbel_topk", tree=MarginTree(8, 3))):
        options = dict(scheme="gls", stop_tokens=[5]) | shape
        first = dict(max_new_tokens=20, temperature=0.9, top_p=0.9)
        prompts = random_prompts(2, seed=1, longest=10)
        decoding.generate(KEY, target, near, prompts, **first, **options)
        assert compiled
        compiled.clear()
        second = dict(max_new_tokens=[18, 25], temperature=[0.5, 2.0], top_p=0.8)
        prompts = random_prompts(2, seed=2, longest=15)
        generation = decoding.generate(
            jax.random.key(8), trigram_model(0), near, prompts, **second, **options
        )
        assert compiled == []
        assert int(generation.lengths.max()) > 1


def test_invalid_logits_end_their_request_and_no_other(target, near):
    """Logits of NaN after token 7: its request ends, the others' texts are what they are without it."""
    is_first_7 = lambda tokens, positions: (tokens == 7) & (positions == 0)  # noqa: E731
    invalid = dataclasses.replace(target, apply=_NanAfter(target.apply, is_first_7))
    prompts = [[3, 4], [7], [9]]
    options = dict(scheme="gls", num_drafts=2, max_new_tokens=6, stop_tokens=[7])
    expected = texts(decoding.generate(KEY, target, near, prompts, **options))
    with pytest.raises(
        decoding.BrokenLogits, match="got NaN or infinite ones for request 1; the others"
    ) as caught:
        decoding.generate(KEY, invalid, near, prompts, **options)
    assert texts(caught.value.generation) == [expected[0], [], expected[2]]


def test_invalid_logits_that_are_not_needed_do_no_harm(target, near):
    """NaN past the context window and after tokens that are drafted and never emitted, and a drafter of NaN."""
    prompts = [[1, 2, 3], [4, 5]]
    options = dict(scheme="gumbel_topk", num_drafts=3, max_length=12, max_new_tokens=16)
    expected = texts(decoding.generate(KEY, target, near, prompts, **options))
    is_beyond = lambda tokens, positions: positions >= 11  # noqa: E731
    beyond = dataclasses.replace(target, apply=_NanAfter(target.apply, is_beyond))
    assert texts(decoding.generate(KEY, beyond, near, prompts, **options)) == expected
    invalid = dataclasses.replace(near, params=jax.tree.map(lambda x: x * jnp.nan, near.params))
    assert texts(decoding.generate(KEY, target, invalid, prompts, **options)) == expected
    with pytest.raises(decoding.BrokenLogits):
        decoding.generate(KEY, target, invalid, prompts, **options | dict(scheme="specinfer"))


@dataclasses.dataclass(frozen=True)
class _NanAfter:
    """NaN after some tokens."""

    apply: object
    where: object

    def __call__(self, params, tokens, positions, mask, cache):
        logits, cache = self.apply(params, tokens, positions, mask, cache)
        return jnp.where(self.where(tokens, positions)[..., None], jnp.nan, logits), cache
