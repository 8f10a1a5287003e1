"""A language in which every text has a known probability, and sampling parameters in float64.

The distribution of a token depends on its position and on the two tokens before it (0 where there is only one).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gls_jax import decoding, models
from gls_jax.models import drafter

TOKENS, LAST = 4, 8


def language(seed):
    """Probabilities `[position, token before the previous one, previous token, token]`.

    All four matter: a model that mistakes one of them gives another distribution.
    """
    p = np.random.default_rng(seed).dirichlet(np.ones(TOKENS), (LAST, TOKENS, TOKENS))
    return 0.4 * p[:, :1, :1] + 0.6 * p


TARGET, DRAFTS = language(4), [language(seed) for seed in (3, 5, 6)]


def read(params, tokens):
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return params[jnp.minimum(jnp.arange(tokens.shape[1]), LAST - 1), before, tokens]


def model(p):
    return decoding.from_function(read, jnp.asarray(np.log(p), jnp.float32), TOKENS)


target, drafters = model(TARGET), [model(p) for p in DRAFTS]


def hidden(params, tokens, positions, mask, cache, layers):
    """The target's log-probabilities are its hidden state, and each layer's features."""
    logits, cache = target.apply(params, tokens, positions, mask, cache)
    return logits, jnp.tile(logits, (1, 1, len(layers))), cache


target_with_features = dataclasses.replace(
    target, hidden=hidden, head=lambda params, hidden: hidden
)


def observing_drafter(tokens=(0, 1, 3)):
    """A drafter with random weights over the target's features, whose head has some of the tokens."""
    sizes = dict(hidden_size=TOKENS, intermediate_size=TOKENS, num_heads=1, num_kv_heads=1)
    layers = models.Config(vocab_size=TOKENS, num_layers=1, **sizes)
    config = drafter.DrafterConfig(layers=layers, observed_layers=(0, 2), num_tokens=len(tokens))
    graph, params = nnx.split(drafter.DrafterNetwork(config, rngs=nnx.Rngs(1)))
    sharper = jax.tree.map(lambda x: x * 40 if x.ndim > 1 else x, params)
    return drafter.drafter_model(nnx.merge(graph, sharper), jnp.array(tokens))


def process(p, text, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=None):
    """Sampling parameters in float64, one after the other, ties kept."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(p, np.float64))
    if repetition_penalty is not None:
        for token in set(text):
            logits[token] = (
                logits[token] / repetition_penalty
                if logits[token] > 0
                else logits[token] * repetition_penalty
            )
    if temperature == 0:
        return np.eye(len(p))[np.argmax(logits)]
    logits = logits / temperature
    if top_k is not None and top_k < len(p):
        logits[logits < np.sort(logits)[-top_k]] = -np.inf
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if top_p is not None:
        order = np.sort(p)[::-1]
        least = order[np.argmax(np.cumsum(order) >= min(top_p, 1 - 1e-9))]
        p = np.where(p < least, 0, p) / p[p >= least].sum()
    if min_p is not None:
        p = np.where(p < min_p * p.max(), 0, p)
        p = p / p.sum()
    return p


def text_probabilities(prompt, length, stop=(), **sampling):
    """Probability of every output: all texts of `length` tokens, or shorter ones that end with a stop token."""
    probabilities = {}

    def visit(text, probability):
        new = text[len(prompt) :]
        if len(new) == length or (new and new[-1] in stop):
            probabilities[tuple(new)] = probability
            return
        raw = TARGET[min(len(text), LAST) - 1, text[-2] if len(text) > 1 else 0, text[-1]]
        for token, p in enumerate(process(raw, text, **sampling)):
            visit([*text, token], probability * p)

    visit(list(prompt), 1.0)
    return probabilities


def counts(generation, rows, probabilities):
    """How often each possible output occurred, and any other one; and their probabilities."""
    tokens, lengths = np.asarray(generation.tokens)[rows], np.asarray(generation.lengths)[rows]
    occurrences = dict.fromkeys(probabilities, 0)
    num_others = 0
    width = tokens.shape[1]
    digits = (tokens + 1) * (np.arange(width) < lengths[:, None])
    codes, numbers = np.unique(digits @ (TOKENS + 1) ** np.arange(width), return_counts=True)
    text_of_code = {
        sum((x + 1) * (TOKENS + 1) ** i for i, x in enumerate(text)): text for text in probabilities
    }
    for code, number in zip(codes, numbers, strict=True):
        if int(code) in text_of_code:
            occurrences[text_of_code[int(code)]] = number
        else:
            num_others += number
    observed = np.array([*occurrences.values(), num_others])
    return observed, np.array([*probabilities.values(), 0.0])
