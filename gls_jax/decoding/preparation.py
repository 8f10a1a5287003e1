"""Input validation of `generate` and `stream`: from their arguments to the arrays of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import checks, schemes, work_shape
from gls_jax.decoding import request_arrays
from gls_jax.decoding.batch_sampling import BatchSampling
from gls_jax.decoding.choice import Auto, Drafters, chain_shape
from gls_jax.decoding.model import AnyModel, LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.sampling_parameters import check_sampling
from gls_jax.decoding.state import EngineConfig, Mode, Requests, Text
from gls_jax.decoding.tree_shape import Shape, shape_of
from gls_jax.schemes import Scheme
from gls_jax.typing import Numbers

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """The input of the engine.

    Attributes:
        config: static configuration.
        requests: the models and the parameters of the requests.
        text: the prompts.
        max_new_tokens: the largest of all requests.
        costs: of each mode of automatic drafting, None if they are to be measured.
    """

    config: EngineConfig
    requests: Requests
    text: Text
    max_new_tokens: int
    costs: tuple[float, ...] | None


def prepare(
    key: PRNGKeyArray,
    target: AnyModel,
    drafters: Drafters,
    prompts: Numbers,
    prompt_lengths: Numbers | None,
    options: DecodeOptions,
) -> Prepared:
    """The arguments of :func:`gls_jax.decoding.stream`, checked, and as the engine takes them.

    Raises:
        ValueError: arguments out of range, or that do not fit together.
    """
    # The models, and the shape of the drafts.
    target = _language_model(target, "target")
    scheme = options.scheme
    scheme = scheme if isinstance(scheme, Scheme) else schemes.get(scheme)
    num_drafts = checks.count(options.num_drafts, "num_drafts")
    automatic = drafters if isinstance(drafters, Auto) else None
    given = drafters.drafter if isinstance(drafters, Auto) else drafters
    models, drafter_chains = _distinct_drafters(given, target, num_drafts)
    prompts, lengths = request_arrays.prompts(prompts, prompt_lengths, target.vocab_size)
    for index, model in enumerate(models):
        _check_drafter(model, f"drafters[{index}]", target)
    batch_size = len(lengths)
    modes: tuple[Mode, ...] = ()
    if automatic is not None:
        if options.tree is not None:
            raise ValueError(f"tree: expected None with automatic drafting, got {options.tree}")
        modes = automatic.modes(scheme, num_drafts)
        # As deep as the deepest mode: counts and texts have room for it.
        depth = max(mode.shape.depth for mode in modes)
        shape = chain_shape(depth, scheme.check_num_drafts(num_drafts))
    else:
        shape = shape_of(scheme, num_drafts, options.draft_length, options.tree)
    if not models and automatic is None:
        # Plain generation drafts nothing. Its token is still that of a list of this size.
        shape = Shape(widths=(), is_chains=False, list_size=shape.list_size)

    # The distributions that are sampled.
    sampling = _batch_sampling(options, scheme, shape, batch_size, target.vocab_size)
    if len(models) > 1 or sampling.draft_temperature.shape[1] > 1:
        for each in (shape, *(mode.shape for mode in modes if mode.source == "model")):
            _check_own_distributions(scheme, each)

    # Where the texts end: at the number of new tokens, or where the context window does.
    num_new = request_arrays.max_new_tokens(options.max_new_tokens, batch_size)
    max_lengths = _max_lengths(lengths, num_new, options.max_length)

    # After the text the caches have slots for a round: the last token, and all nodes that a model
    # reads. Sizes are rounded up, so that other requests run the same compiled program.
    text_size = prompts.shape[1] + request_arrays.round_up(int(num_new.max()))
    shapes = [shape, *(mode.shape for mode in modes)]
    num_nodes = max(max(shape.num_nodes, shape.num_read) for shape in shapes)
    num_cache_slots = text_size + 1 + num_nodes
    return Prepared(
        config=EngineConfig(
            scheme=scheme,
            shape=shape,
            drafter_chains=drafter_chains,
            num_cache_slots=num_cache_slots,
            work=work_shape.current(),
            modes=modes,
        ),
        requests=Requests(
            target=target,
            drafters=models,
            keys=request_arrays.keys(key, batch_size),
            sampling=sampling,
            max_lengths=jnp.asarray(max_lengths, jnp.int32),
            stop_tokens=request_arrays.stop_tokens(
                options.stop_tokens, batch_size, target.vocab_size
            ),
        ),
        text=Text(tokens=jnp.asarray(prompts), length=jnp.asarray(lengths, jnp.int32), seen=None),
        max_new_tokens=int(num_new.max()),
        costs=None if automatic is None else automatic.costs,
    )


def _language_model(value: object, name: str) -> LanguageModel:
    """A language model, or that of a checkpoint."""
    model = getattr(value, "language_model", value)
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"{name}: expected a gls_jax.decoding.LanguageModel, got {type(value).__name__}"
        )
    return model


def _distinct_drafters(
    drafters: AnyModel | Sequence[AnyModel] | None, target: LanguageModel, num_drafts: int
):
    """The different models among the drafters, and the chains that each of them makes."""
    if drafters is None:
        return (), ()
    if not isinstance(drafters, Sequence):
        drafters = [drafters]
    # A checkpoint is a tuple, but one drafter. Its property is looked up in the class, because its
    # evaluation hashes the vocabulary.
    elif hasattr(type(drafters), "language_model"):
        drafters = [cast(AnyModel, drafters)]
    if len(drafters) not in (1, num_drafts):
        raise ValueError(
            f"drafters: expected one, or one for each of {num_drafts} drafts, got {len(drafters)}"
        )
    # A model that is given for several chains is called once per level for all of them.
    per_chain = list(drafters) * num_drafts if len(drafters) == 1 else drafters
    chains: dict[int, list[int]] = {}
    for k, drafter in enumerate(per_chain):
        chains.setdefault(id(drafter), []).append(k)
    models = []
    for first, *_ in chains.values():
        model = _language_model(per_chain[first], f"drafters[{first}]")
        # An unknown tokenizer is not checked.
        vocabularies = {model.vocabulary, target.vocabulary} - {None}
        if len(vocabularies) > 1:
            raise ValueError(
                f"drafters[{first}]: expected the tokenizer of the target, got another one"
            )
        models.append(model)
    return tuple(models), tuple(tuple(columns) for columns in chains.values())


def _check_drafter(drafter: LanguageModel, name: str, target: LanguageModel) -> None:
    """Refuse a drafter that this target cannot serve."""
    if drafter.observe is not None and target.hidden is None:
        raise ValueError(
            f"{name}: expected a target with features for a drafter that observes them, got one "
            "without `hidden`; models of gls_jax.models have it"
        )
    if drafter.tokens is None or isinstance(drafter.tokens, jax.core.Tracer):
        return
    tokens = np.asarray(drafter.tokens)
    is_list = tokens.ndim == 1 and tokens.size > 0 and tokens.dtype.kind in "iu"
    if not is_list or (np.diff(tokens.astype(np.int64)) <= 0).any():
        raise ValueError(f"{name}: expected increasing token ids as its tokens, got something else")
    if tokens[0] < 0 or tokens[-1] >= target.vocab_size:
        raise ValueError(
            f"{name}: expected tokens within 0..{target.vocab_size - 1}, "
            f"got {tokens[0]} to {tokens[-1]}"
        )


def _batch_sampling(
    options: DecodeOptions,
    scheme: Scheme,
    shape: Shape,
    batch_size: int,
    vocab_size: int,
) -> BatchSampling:
    """The sampling parameters, with one number per request."""
    if options.temperature is None:
        raise ValueError("temperature: expected 0 or a finite number of at least 1e-6, got None")
    check_sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )
    per_request: dict[str, Any] = {
        name: request_arrays.per_request(getattr(options, name), name, batch_size)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty")
    }
    # A `top_k` that keeps all tokens is left out, so that nothing is sorted.
    top_k = options.top_k
    if top_k is not None and top_k >= vocab_size:
        top_k = None
    return BatchSampling(
        **per_request,
        draft_temperature=_draft_temperature(options, scheme, shape, batch_size),
        vocab_size=vocab_size,
        top_k=top_k,
    )


def _max_lengths(lengths: np.ndarray, num_new: np.ndarray, max_length: int | None) -> np.ndarray:
    """The length at which each text ends, `[B]`: at most `max_length`, unless that is None."""
    if max_length is None:
        return lengths + num_new
    if lengths.max() >= checks.count(max_length, "max_length"):
        raise ValueError(
            f"prompts: expected fewer than max_length ({max_length}) tokens, got {lengths.max()}"
        )
    return np.minimum(lengths + num_new, max_length)


def _draft_temperature(
    options: DecodeOptions, scheme: Scheme, shape: Shape, batch_size: int
) -> jax.Array:
    """`f32[B, 1]`, or `f32[B, K]` where the chains differ."""
    # In plain generation draft temperatures have no effect, and are not checked.
    if options.draft_temperatures is None or shape.depth == 0:
        temperature = request_arrays.per_request(options.temperature, "temperature", batch_size)
        assert temperature is not None
        # A list of the likeliest tokens needs several possible ones: at temperature 0 there is one.
        if not scheme.samples_drafts:
            temperature = jnp.where(temperature > 0, temperature, 1)
        return temperature[:, None]
    one_each = f"one for each of {shape.list_size} drafts"
    temperatures = request_arrays.as_numpy(
        options.draft_temperatures, "draft_temperatures", f"one number, or {one_each}"
    )
    try:
        check_sampling(temperatures)
    except ValueError as error:
        # Its message begins with "temperature".
        raise ValueError(f"draft_{error}") from None
    temperatures = temperatures.astype(np.float32)
    if temperatures.shape not in ((), (1,), (shape.list_size,)):
        raise ValueError(
            f"draft_temperatures: expected one, or {one_each}, got {temperatures.tolist()}"
        )
    # Equal temperatures are one: all drafts share a distribution.
    distinct = np.unique(temperatures)
    if len(distinct) == 1:
        temperatures = distinct
    return jnp.asarray(np.broadcast_to(temperatures, (batch_size, temperatures.size)))


def _check_own_distributions(scheme: Scheme, shape: Shape) -> None:
    """Refuse several drafters or draft temperatures where all drafts must share a distribution."""
    several = "several drafters or draft temperatures"
    if not scheme.diverse:
        raise ValueError(
            f"drafters: expected one distribution for all drafts of scheme '{scheme.name}', "
            f"got {several}"
        )
    if not shape.is_chains:
        raise ValueError(f"drafters: expected chains for {several}, got a tree")
