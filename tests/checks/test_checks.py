"""Input validation: every public function of the core names bad input in one line."""

import inspect
import types

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import checkify

import gls_jax
from gls_jax import bounds, checks, couplings, decomposition, schemes, trials
from gls_jax.checks import log_probabilities

BAD_LOG_PROBS = [
    (
        np.log([0.25, 0.25]),
        r"expected probabilities that sum to 1 \(within 0.001\), got a sum of 0.5",
    ),
    (np.log([0.9, 0.9]), "got a sum of 1.8"),
    (np.array([np.nan, 0.0]), "expected log-probabilities, got NaN"),
    (np.array([0.5, -np.inf]), "expected log-probabilities of at most 0, got 0.5"),
    (np.array([np.inf, -1.0]), "expected log-probabilities of at most 0, got inf"),
    (np.array([-np.inf, -np.inf]), "got a sum of 0"),
    (np.array(0.0), r"expected shape \[..., N\] with N >= 1, got \[\]"),
    (np.zeros((2, 0)), r"expected shape \[..., N\] with N >= 1, got \[2, 0\]"),
    ("words", "expected an array of floats"),
    (np.array([1j, 0]), "expected an array of floats, got dtype complex64"),
]


@pytest.fixture(autouse=True)
def without_shape_checks(monkeypatch):
    """Bad input must reach the library's own errors, not those of tests/conftest.py."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(("value", "message"), BAD_LOG_PROBS)
def test_bad_log_probabilities_are_named_in_one_line(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        gls_jax.check_log_probs(value, "log_q")
    assert str(caught.value).startswith("log_q") and "\n" not in str(caught.value)


def test_the_bad_row_is_named():
    rows = np.log([[[0.5, 0.5], [0.5, 0.4]]])
    with pytest.raises(ValueError, match=r"log_p\[0, 1\]: expected probabilities that sum to 1"):
        gls_jax.check_log_probs(rows, "log_p")


def test_good_log_probabilities_pass():
    for log_probs in (
        np.log([0.5, 0.5]),
        np.array([0.0, -np.inf]),
        np.zeros((3, 1)),
        np.zeros((0, 4)),
    ):
        gls_jax.check_log_probs(log_probs)
    logits = jax.random.normal(jax.random.key(0), (3, 200_000)) * 5
    gls_jax.check_log_probs(jax.nn.log_softmax(logits))


@pytest.mark.parametrize("value", [value for value, _ in BAD_LOG_PROBS[:6]])
def test_values_under_jit_are_checked_through_checkify(value):
    def traced(log_probs):
        gls_jax.check_log_probs(log_probs, "log_q")
        return log_probs

    error, _ = checkify.checkify(jax.jit(traced))(jnp.asarray(value, jnp.float32))
    with pytest.raises(checkify.JaxRuntimeError, match="log_q: expected"):
        error.throw()
    error, _ = checkify.checkify(jax.jit(traced))(jnp.log(jnp.array([0.5, 0.5])))
    error.throw()


def test_constants_inside_jit_are_still_checked():
    log_probs = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    verify = schemes.get("specinfer").verify

    def emit(drafts):
        return jax.jit(lambda key: verify(key, drafts, log_probs, log_probs))(jax.random.key(0))

    assert int(emit(jnp.array([1, 0]))) in (0, 1)
    with pytest.raises(ValueError, match=r"drafts: expected tokens within 0..2, got 0 to 3"):
        emit(jnp.array([0, 3]))


# Every public function of the core that takes distributions, called for one problem and two drafts.

KEY = jax.random.key(0)
P, Q = np.log([0.1, 0.2, 0.3, 0.25, 0.15]), np.log([0.3, 0.1, 0.2, 0.2, 0.2])
TREE = schemes.chains(jnp.zeros((2, 1), jnp.int32))
DRAFTS = jnp.zeros(2, jnp.int32)
GLS, WITHOUT_REPLACEMENT = schemes.get("gls"), schemes.get("specinfer_wor")
CALLS = {
    "list_sample": lambda log_p, log_q: gls_jax.list_sample(KEY, log_p, log_q, 2),
    "check_log_probs": lambda log_probs: gls_jax.check_log_probs(log_probs),
    "bounds.communication_free": bounds.communication_free,
    "bounds.list_matching": lambda log_p, log_q: bounds.list_matching(log_p, log_q, 2),
    "bounds.list_matching_given_target": lambda log_p, log_q: bounds.list_matching_given_target(
        log_p, log_q, 2
    ),
    "bounds.list_matching_relaxed": lambda log_p, log_q: bounds.list_matching_relaxed(
        log_p, log_q, 2
    ),
    "bounds.list_matching_strong": lambda log_p, log_q: bounds.list_matching_strong(
        log_p, log_q, 2, 3
    ),
    "bounds.optimum": lambda log_p, log_q: bounds.optimum(log_p, log_q, np.linspace(0.2, 1, 5)),
    "bounds.optimum_distinct": lambda log_p, log_q: bounds.optimum_distinct(log_p, log_q, 2),
    "bounds.optimum_iid": lambda log_p, log_q: bounds.optimum_iid(log_p, log_q, 2),
    "bounds.prefix_order": bounds.prefix_order,
    "bounds.total_variation": bounds.total_variation,
    "couplings.dart_protocol": lambda log_p, log_q: couplings.dart_protocol(KEY, log_p, log_q, 0.1),
    "couplings.first_dart": lambda log_weights: couplings.first_dart(KEY, log_weights),
    "couplings.gumbel": lambda log_p, log_q: couplings.gumbel(KEY, log_p, log_q),
    "couplings.gumbel_match": couplings.gumbel_match,
    "couplings.maximal": lambda log_p, log_q: couplings.maximal(KEY, log_p, log_q),
    "couplings.maximal_match": couplings.maximal_match,
    "couplings.minhash_match": couplings.minhash_match,
    "couplings.weighted_minhash": lambda log_p, log_q: couplings.weighted_minhash(
        KEY, log_p, log_q
    ),
    "decomposition.always_accepts": lambda log_p, log_q: decomposition.always_accepts(
        log_p, log_q, 2
    ),
    "decomposition.selected_distribution": lambda log_p: decomposition.selected_distribution(
        lambda drafts: drafts == 0, log_p, 2
    ),
    "trials.acceptance": lambda log_p, log_q: trials.acceptance(
        KEY, log_p, log_q, scheme="gls", num_drafts=2, num_trials=10
    ),
    "trials.sweep": lambda log_p, log_q: trials.sweep(
        KEY, [log_p], [log_q], scheme="gls", num_drafts=(1, 2), num_trials=10
    ),
    "schemes.gls.acceptance_active": lambda log_p, log_q: schemes.gls.acceptance_active(
        log_p, log_q, 1, 2
    ),
    "schemes.gumbel_topk.acceptance_interval": lambda log_p, log_q: (
        schemes.gumbel_topk.acceptance_interval(log_p, log_q, (2,))
    ),
    "schemes.specinfer_wor.acceptance_estimate": lambda log_p, log_q: (
        schemes.specinfer_wor.acceptance_estimate(KEY, log_p, log_q, 2, 10)
    ),
    "Scheme.propose": lambda log_p: GLS.propose(KEY, log_p, 2),
    "Scheme.verify": lambda log_p, log_q: GLS.verify(KEY, DRAFTS, log_p, log_q),
    "Scheme.acceptance": lambda log_p, log_q: GLS.acceptance(log_p, log_q, 2),
    "Scheme.acceptance_curve": lambda log_p, log_q: WITHOUT_REPLACEMENT.acceptance_curve(
        log_p, log_q, (1, 2)
    ),
    "Scheme.accepted": lambda log_p, log_q: WITHOUT_REPLACEMENT.accepted(KEY, log_p, log_q, 2),
    "Scheme.inversion_trial": lambda log_p, log_q: GLS.inversion_trial(log_p, log_q, 2),
    "Scheme.verify_tree": lambda log_p, log_q: GLS.verify_tree(
        KEY, 0, TREE, [log_p] * 2, [log_q] * 3
    ),
}
HOST_CALLS = {  # these take probabilities
    "decomposition.best_selection": lambda draft_probs, q: decomposition.best_selection(
        [draft_probs] * 2, q
    ),
    "decomposition.set_distribution": lambda draft_probs: decomposition.set_distribution(
        [draft_probs] * 2
    ),
}
BATCH = r"jax\.vmap|trials\.sweep|\[M, N\]"
MISUSES = {
    "probabilities": (np.exp, "probabilit.* take jnp.log"),
    "one-hot": (lambda x: np.eye(5)[0], "probabilities: take jnp.log"),
    "integers": (
        lambda x: np.eye(5, dtype=int)[0],
        "expected an array of floats, got dtype int32.* take jnp.log",
    ),
    "logits": (lambda x: x + 5, "look like logits: take jax.nn.log_softmax"),
    "shifted": (lambda x: x - x.max(), r"got a sum of .*; logits, .* jax.nn.log_softmax"),
    "masked": (
        lambda x: np.where(np.arange(5) == 1, -np.inf, x),
        r"got a sum of 0\.[89]; .*log_p - logsumexp",
    ),
    "nan": (lambda x: np.where(np.arange(5) == 1, np.nan, x), "got NaN"),
    "inf": (lambda x: np.where(np.arange(5) == 1, np.inf, x), "at most 0, got inf"),
    "nothing": (lambda x: np.full(5, -np.inf), "got a sum of 0: every value is -inf"),
    "batch": (lambda x: np.stack([x] * 7), BATCH),
    "batches": (lambda x: np.zeros((3, 4, 2, 5)) + x, BATCH),
    "no categories": (lambda x: x[:0], "N >= 1|same number of"),
    "scalar": (lambda x: x[0], "N >= 1"),
    "other categories": (lambda x: np.log(np.full(6, 1 / 6)), "same number of"),
    "complex": (lambda x: x + 0j, "expected an array of floats, got dtype complex64"),
    "bool": (lambda x: x < -1, "expected an array of floats, got dtype bool"),
    "words": (lambda x: "gumbel", "expected an array of floats, got (str|list)"),
    "none": (lambda x: None, "expected an array of floats, got (NoneType|list)"),
    "ragged": (
        lambda x: [[0.0], [-1.0, -2.0]],
        "expected an array of floats, got list whose rows make no array",
    ),
}


def takes_distributions():
    """Names of the public functions whose signature has a distribution."""
    modules = {
        "": gls_jax,
        "bounds.": bounds,
        "couplings.": couplings,
        "decomposition.": decomposition,
        "trials.": trials,
    }
    functions = {
        prefix + name: vars(module).get(name)
        for prefix, module in modules.items()
        for name in module.__all__
    } | {
        f"Scheme.{name}": getattr(schemes.Scheme, name)
        for name in vars(schemes.Scheme)
        if name[0] != "_"
    }
    behind_the_methods = {"propose", "verify", "verify_tree", "acceptance", "accepted"}
    behind_the_methods |= {"inversion_trial", "propose_among"}
    for module in vars(schemes).values():
        if isinstance(module, types.ModuleType) and hasattr(module, "SCHEME"):
            others = set(module.__all__) - behind_the_methods
            functions |= {
                f"schemes.{module.SCHEME.name}.{name}": getattr(module, name) for name in others
            }
    names = {"log_p", "log_q", "log_probs", "log_weights", "draft_probs"}
    return {
        name
        for name, f in functions.items()
        if inspect.isfunction(f) and names & set(inspect.signature(f).parameters)
    }


def test_every_function_with_a_distribution_is_called_here():
    assert takes_distributions() == set(CALLS) | set(HOST_CALLS)


def distributions_of(call):
    """Good arguments by name."""
    return {name: Q if name == "log_q" else P for name in inspect.signature(call).parameters}


@pytest.mark.parametrize("misuse", MISUSES)
@pytest.mark.parametrize("name", CALLS)
def test_misuse_is_named_in_one_line(name, misuse):
    call, (spoil, words) = CALLS[name], MISUSES[misuse]
    good = distributions_of(call)
    if (name == "check_log_probs" and misuse.startswith("batch")) or (
        len(good) == 1 and misuse == "other categories"
    ):
        return  # it takes batches; there is nothing to differ from
    for argument in good:
        for spoilt in dict.fromkeys([argument] if misuse != "batch" else [argument, tuple(good)]):
            bad = {key: spoil(value) if key in spoilt else value for key, value in good.items()}
            with pytest.raises(ValueError, match=words) as caught:
                call(**bad)
            assert str(caught.value).startswith(("log_p and log_q", *good)) and "\n" not in str(
                caught.value
            )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (np.log, "look like log-probabilities: take jnp.exp"),
        (lambda x: x * 2, "expected probabilities that sum to 1 .* got a sum of 2"),
        (lambda x: x - 0.3, "expected probabilities, got -0."),
        (lambda x: x * np.nan, "expected probabilities, got nan"),
        (lambda x: None, "expected an array of floats"),
        (lambda x: x[:0], "shape"),
        (lambda x: np.stack([x] * 2), "shape"),
    ],
)
@pytest.mark.parametrize("name", HOST_CALLS)
def test_misuse_of_host_functions_is_named_in_one_line(name, spoil, words):
    log_probs = distributions_of(HOST_CALLS[name])
    good = {argument: np.exp(value) for argument, value in log_probs.items()}
    for argument, probs in good.items():
        with pytest.raises(ValueError, match=words) as caught:
            HOST_CALLS[name](**good | {argument: spoil(probs)})
        assert str(caught.value).startswith(argument) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16", "float64", list])
@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith("trials")])
def test_values_are_checked_once_a_call(name, kind, monkeypatch):
    """Nothing is compiled: the arrays are constants of an abstract evaluation, and so known."""
    seen, look = [], checks.values
    for module in (checks, log_probabilities):
        monkeypatch.setattr(
            module,
            "values",
            lambda value, name, **knobs: (seen.append(name), look(value, name, **knobs)),
        )
    good = distributions_of(CALLS[name])
    cast = {
        key: value.tolist() if kind is list else value.astype(jnp.dtype(kind))
        for key, value in good.items()
    }

    def run():
        CALLS[name](**cast)

    jax.eval_shape(run)
    assert sorted(seen) == sorted(good)


def test_contained_must_be_probabilities():
    for bad, words in (
        (P, "contained: .* take jnp.exp"),
        (np.full(5, 1.2), "contained: expected probabilities, got 1.2"),
    ):
        with pytest.raises(ValueError, match=words):
            bounds.optimum(P, Q, bad)


def test_rows_of_nodes_that_are_not_alive_are_not_checked():
    rows = np.stack([P, Q, P * np.nan])
    checks.alive_rows(rows[1:], np.array([True, False]), "log_p")
    checks.alive_rows(rows, np.array([True, False]), "log_q", root=True)
    with pytest.raises(ValueError, match=r"log_q.*NaN"):
        checks.alive_rows(rows, np.array([False, True]), "log_q", root=True)


SIZES = (32_000, 50_257, 151_936)  # of real vocabularies


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64])
# Scale 0 is the uniform distribution, where all rounding errors are alike.
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_softmax_in_any_float_type_passes(kind, scale):
    for size in SIZES:
        logits = scale * np.random.default_rng(size).normal(size=size)
        if kind is np.float64:
            checks.values(logits - np.log(np.exp(logits).sum()), "log_p")
            continue
        exact = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        candidates = [exact.astype(kind)]
        if kind is not jnp.float16 or size < 2**16:  # float16 cannot hold larger sums
            candidates.append(jax.nn.log_softmax(jnp.asarray(logits, kind)))
        for log_probs in candidates:
            checks.values(log_probs, "log_p")
            checks.values(np.asarray(log_probs), "log_p")


def test_missing_mass_is_not_taken_for_rounding():
    """The mass that top-p .9 cuts is found in bfloat16, that of one token of .002 in float32."""
    logits = 4 * np.random.default_rng(0).normal(size=50_257)
    log_probs = np.sort(np.asarray(jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))))[::-1]
    cut = np.where(np.cumsum(np.exp(log_probs)) < 0.9, log_probs, -np.inf)
    with pytest.raises(ValueError, match=r"got a sum of 0\.[89].* masked"):
        checks.values(jnp.asarray(cut, jnp.bfloat16), "log_p")
    checks.values(np.log([0.5, 0.4992]), "log_p")
    with pytest.raises(ValueError, match=r"within 0.001\), got a sum of 0.998"):
        checks.values(np.log([0.5, 0.498]), "log_p")


def test_only_known_values_are_checked():
    """Constants under `vmap` over keys are known; arguments of `jit`, `vmap` and `grad` are not."""
    p, q = np.exp(P).astype(np.float32), np.exp(Q).astype(np.float32)
    keys = jax.random.split(KEY, 2)
    with pytest.raises(ValueError, match=r"log_p: .* take jnp.log"):
        jax.eval_shape(jax.vmap(lambda key: gls_jax.list_sample(key, p, q, 2)), keys)
    for lift in (jax.jit, jax.vmap, jax.grad):
        rows = (p, q) if lift is not jax.vmap else (p[None], q[None])
        jax.eval_shape(lift(lambda p, q: bounds.list_matching(p, q, 2)), *rows)


def test_the_bad_row_of_a_sweep_is_named():
    rows = np.stack([P, P, np.exp(P)])
    with pytest.raises(ValueError, match=r"log_p\[2\]: .* take jnp.log"):
        trials.sweep(KEY, rows, np.stack([Q] * 3), scheme="gls", num_drafts=(2,), num_trials=10)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (0, r"expected a typed key from jax.random.key\(seed\), got int$"),
        (None, r"expected a typed key from jax.random.key\(seed\), got NoneType$"),
        (
            jax.random.PRNGKey(0),
            r'dtype uint32; .* jax.random.wrap_key_data\(key, impl="threefry2x32"\)$',
        ),
        (
            jax.random.split(KEY, 3),
            r"expected one key of shape \[\], got shape \[3\]; lift with jax.vmap",
        ),
        (
            jax.random.key(0, impl="rbg"),
            r"got 'rbg'; make it by jax.random.key\(seed, impl=\"threefry2x32\"\)$",
        ),
    ],
    ids=["seed", "none", "old", "many", "rbg"],
)
def test_the_error_of_a_wrong_key_says_how_to_make_a_right_one(key, words):
    for call in (
        lambda: gls_jax.list_sample(key, P, Q, 2),
        lambda: GLS.propose(key, P, 2),
        lambda: GLS.verify(key, DRAFTS, P, Q),
        lambda: GLS.accepted(key, P, Q, 2),
        lambda: GLS.verify_tree(key, 0, TREE, [P] * 2, [Q] * 3),
        lambda: couplings.gumbel(key, P, Q),
        lambda: couplings.weighted_minhash(key, P, Q),
        lambda: trials.acceptance(key, P, Q, scheme="gls", num_drafts=2, num_trials=1),
        lambda: gls_jax.races.exponentials(key, 1, 1),
    ):
        with pytest.raises(ValueError, match=f"^key: .*{words}"):
            call()
    if getattr(key, "ndim", 0) != 1 or key.dtype == np.uint32:  # a sweep takes many keys
        with pytest.raises(ValueError, match=f"^key: .*{words}"):
            trials.sweep(key, [P], [Q], scheme="gls", num_drafts=(2,), num_trials=1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("ab", "got str"),
        (None, "got NoneType"),
        ([[0], [0, 1]], "got list whose rows make no array of numbers"),
        (np.array([object(), object()]), "got dtype object"),
        (
            np.ma.array([0, 1], mask=[False, True]),
            "got a masked array; fill it by its method `filled`",
        ),
        (np.array([2**32 + 1, 0]), "integers of 32 bits, got 4294967297"),
        (np.array([0, 2**63], np.uint64), "integers of 32 bits, got 9223372036854775808"),
        ([0.0, 1.0], "got float64 of shape"),
    ],
)
def test_bad_drafts_are_named(value, words):
    """Among them integers beyond 32 bits, which would wrap around to another token."""
    with pytest.raises(ValueError, match=f"^drafts: expected .*{words}"):
        GLS.verify(KEY, value, P, Q)
    with pytest.raises(ValueError, match=r"^tokens: expected .*"):
        gls_jax.schemes.chains(value)
    if value is not None:
        with pytest.raises(ValueError, match=r"^active: expected bool of shape"):
            GLS.verify(KEY, DRAFTS, P, Q, value)


def test_any_byte_order_gives_the_same_result():
    log_p = np.asarray(P, np.float64)
    assert float(GLS.acceptance(log_p.astype(">f8"), Q, 2)) == float(GLS.acceptance(log_p, Q, 2))
    assert int(GLS.verify(KEY, np.asarray(DRAFTS, ">i8"), P, Q)) == int(
        GLS.verify(KEY, DRAFTS, P, Q)
    )
