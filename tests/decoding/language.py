"""A language in which every text has a known probability, and the slow version of what a request asks for.

The law of a token depends on its position and on the two tokens before it (0 where there is only one).
"""

import jax.numpy as jnp
import numpy as np

from gls_jax import decoding

TOKENS, LAST = 4, 8


def language(seed):
    """`[position, token before the previous one, previous one, token]`; a wrong one of them shows."""
    laws = np.random.default_rng(seed).dirichlet(np.ones(TOKENS), (LAST, TOKENS, TOKENS))
    return 0.4 * laws[:, :1, :1] + 0.6 * laws


TARGET, DRAFTS = language(4), [language(seed) for seed in (3, 5, 6)]


def read(params, tokens):
    before = jnp.pad(tokens, ((0, 0), (1, 0)))[:, :-1]
    return params[jnp.minimum(jnp.arange(tokens.shape[1]), LAST - 1), before, tokens]


def model(laws):
    return decoding.from_function(read, jnp.asarray(np.log(laws), jnp.float32), TOKENS)


target, drafters = model(TARGET), [model(laws) for laws in DRAFTS]


def process(
    p, context, temperature=1.0, top_k=None, top_p=None, min_p=None, repetition_penalty=None
):
    """Sampling parameters in float64, one after the other, ties kept."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(p, np.float64))
    if repetition_penalty is not None:
        for token in set(context):
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
    law = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if top_p is not None:
        order = np.sort(law)[::-1]
        least = order[np.argmax(np.cumsum(order) >= min(top_p, 1 - 1e-9))]
        law = np.where(law < least, 0, law) / law[law >= least].sum()
    if min_p is not None:
        law = np.where(law < min_p * law.max(), 0, law)
        law = law / law.sum()
    return law


def law_of_texts(prompt, length, stop=(), **sampling):
    """Probability of every output: all texts of `length` tokens, or shorter ones that end with a stop token."""
    law = {}

    def go(text, chance):
        new = text[len(prompt) :]
        if len(new) == length or (new and new[-1] in stop):
            law[tuple(new)] = chance
            return
        raw = TARGET[min(len(text), LAST) - 1, text[-2] if len(text) > 1 else 0, text[-1]]
        for token, p in enumerate(process(raw, text, **sampling)):
            go([*text, token], chance * p)

    go(list(prompt), 1.0)
    return law


def counts(generation, rows, law):
    """How often each output of the law came, and how often another."""
    tokens, lengths = np.asarray(generation.tokens)[rows], np.asarray(generation.lengths)[rows]
    found = dict.fromkeys(law, 0)
    other = 0
    width = tokens.shape[1]
    every = (tokens + 1) * (np.arange(width) < lengths[:, None])
    codes, numbers = np.unique(every @ (TOKENS + 1) ** np.arange(width), return_counts=True)
    names = {sum((x + 1) * (TOKENS + 1) ** i for i, x in enumerate(text)): text for text in law}
    for code, number in zip(codes, numbers, strict=True):
        if int(code) in names:
            found[names[int(code)]] = number
        else:
            other += number
    return np.array([*found.values(), other]), np.array([*law.values(), 0.0])
