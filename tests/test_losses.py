"""The loss is one minus the schemes' exact acceptance, with its derivatives, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gls_jax import losses, schemes, trials

pytestmark = pytest.mark.usefixtures("quick_compilation")
SIZE, STEP = 6, 1e-5
# Logits of draft and target, and a direction.
POINT, DIRECTION = np.random.default_rng(8).normal(size=(2, 2, SIZE))
# For most schemes 6 tokens and 3 drafts; larger programs of these take long to compile.
SIZES = {"weighted_importance": 3}
DRAFTS = {"single": 1, "minhash": 1, "specinfer_wor": 2, "weighted_importance": 2}


def loss_of(name, num_drafts=None):
    num_drafts = num_drafts or DRAFTS.get(name, 3)
    return lambda draft, target: losses.acceptance(
        draft, target, scheme=name, num_drafts=num_drafts
    )


def assert_close(tree, expected, *, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), tree, expected)


@pytest.mark.parametrize("name", schemes.NAMES)
def test_value_and_derivatives_are_those_of_the_acceptance(name):
    """In float64, at a point and a step before and after it.

    Against the plain acceptance and its gradient, and against central differences: of the value,
    and of the gradient for the second derivative (forward over reverse, and so both modes).
    """
    loss = loss_of(name)
    size = SIZES.get(name, SIZE)
    point = POINT[:, None, :size]
    direction = DIRECTION[:, None, :size]
    with jax.enable_x64(True):
        rows = jnp.asarray(point + np.array([-STEP, 0, STEP])[:, None] * direction)  # [2, 3, N]
        tangent = jnp.asarray(np.broadcast_to(direction, rows.shape))

        def plain(draft, target):
            log_p = jax.nn.log_softmax(draft)
            log_q = jax.nn.log_softmax(target)
            return 1 - schemes.get(name).acceptance(log_p, log_q, DRAFTS.get(name, 3))

        def loss_and_gradient(rows):
            values, pullback = jax.vjp(lambda rows: loss(*rows), rows)
            return values, pullback(jnp.ones(3))[0]

        @jax.jit
        def everything(rows):
            derivatives = jax.jvp(loss_and_gradient, (rows,), (tangent,))
            return *derivatives, jax.vmap(jax.value_and_grad(plain, (0, 1)))(*rows)

        (values, slopes), (value_change, slope_change), plain_results = everything(rows)
        expected, expected_slopes = plain_results
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-9, atol=1e-12)
        forward = float(value_change[1])
        difference = float(values[2] - values[0]) / (2 * STEP)
        assert forward == pytest.approx(difference, rel=1e-5, abs=1e-8)
        reverse = float(jnp.sum(slopes[:, 1] * direction[:, 0]))
        assert reverse == pytest.approx(forward, rel=1e-9, abs=1e-12)
        slope_difference = (slopes[:, 2] - slopes[:, 0]) / (2 * STEP)
        np.testing.assert_allclose(slope_change[:, 1], slope_difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in schemes.NAMES if name != "optimal"])
def test_peaked_drafts_have_the_gradients_of_float64(name):
    """All but one token at e^-a, down to the lightest that can be drafted.

    The target has its mass on the light ones, so that ratios go up to e^79, and inverse masses
    leave float32 when squared.
    """
    rare = np.array([20, 44, 70, 78.0])
    draft = np.stack([0 * rare, -rare, -rare - 0.5, -rare - 0.7], 1)
    target = np.broadcast_to([-3.0, -1, 0, 0.3], draft.shape)
    loss = loss_of(name)
    gradients = jax.value_and_grad(lambda *logits: loss(*logits).sum(), (0, 1))
    single = jax.jit(gradients)(jnp.asarray(draft, jnp.float32), jnp.asarray(target, jnp.float32))
    with jax.enable_x64(True):
        double = jax.jit(gradients)(jnp.asarray(draft), jnp.asarray(target))
    assert_close(single, double, atol=1e-5)


@pytest.mark.parametrize("name", ["gls", "poisson", "gumbel_topk", "spectr", "single", "optimal"])
def test_gradients_are_finite_and_zero_where_the_distributions_agree(name):
    """With masks, point masses and extreme logits."""
    mask = -np.inf
    draft = [
        [0, 1, 2, mask, mask, mask],  # disjoint
        [0, 1, mask, mask, 2, 0.5],  # top-k that overlaps
        [0, mask, mask, mask, mask, mask],  # a point mass
        [1e4, 0, -1e4, 3, 0, 0],  # a point mass to float32
        [0, -79, -85, -70, 1, 2],  # near the least weight, and below
        [0, 0, 0, 1, 1, 1],  # ties
        [0, 0, 0, 0, 0, 0],
        [1, 2, -3, 0.5, 0.1, -2],
        [3, 1, mask, mask, mask, 1],
    ]
    target = [
        [mask, mask, mask, 2, 1, 0],
        [1, mask, 0, mask, 2, 0],
        [1, 2, 3, 4, 5, 6],
        [0, 1e4, -1e4, 3, 0, 0],
        [-79, 0, 1, 0, -85, -70],
        [1, 1, 1, 0, 0, 0],
        *draft[-3:],
    ]
    logits = jnp.asarray([draft, target], jnp.float32)
    loss = loss_of(name)
    total, slopes = jax.jit(jax.value_and_grad(lambda x: jnp.sum(loss(*x))))(logits)
    assert bool(jnp.isfinite(total)) and bool(jnp.isfinite(slopes).all())
    assert float(jnp.abs(jnp.where(jnp.isneginf(logits), slopes, 0)).max()) == 0
    np.testing.assert_allclose(slopes[:, -3:], 0, atol=1e-6)
    assert float(jnp.abs(slopes[:, [1, 5]]).max()) > 1e-3  # and not everywhere


@pytest.mark.parametrize("shape", [(SIZE,), (2, 3, SIZE), (0, SIZE)])
def test_any_leading_shape_is_kept(shape):
    loss = loss_of("poisson")
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert jax.eval_shape(loss, logits, logits).shape == shape[:-1]


def test_no_positions_have_no_losses():
    nothing = np.zeros((0, SIZE), np.float32)
    assert loss_of("poisson")(nothing, nothing).shape == (0,)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.float64, jnp.float64)],
)
def test_gradients_have_the_type_of_their_logits(kind, expected):
    loss = loss_of("poisson")
    with jax.enable_x64(kind == jnp.float64):
        draft = jax.ShapeDtypeStruct((2, SIZE), kind)
        target = jax.ShapeDtypeStruct((2, SIZE), jnp.float32)
        gradients = jax.value_and_grad(lambda *logits: jnp.sum(loss(*logits)), (0, 1))
        value, slopes = jax.eval_shape(gradients, draft, target)
        assert (value.dtype, slopes[0].dtype, slopes[1].dtype) == (expected, kind, jnp.float32)


def test_vmap_and_shard_map_give_the_same_gradients():
    """`shard_map` with its default checks, and with the target on every device."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, SIZE)), jnp.float32)
    loss = loss_of("gls")
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("x")
    split = jax.shard_map(loss, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec)
    plain, *lifted = [
        jax.jit(jax.value_and_grad(lambda *logits, f=f: jnp.sum(f(*logits)), (0, 1)))(*rows)
        for f in (loss, jax.vmap(loss), split)
    ]
    for gradients in lifted:
        assert_close(gradients, plain, atol=1e-6)


def test_training_raises_the_acceptance():
    """30 steps of Adam, and 20,000 trials before and after; the gain is 40 standard errors."""
    logits, target = 2 * jax.random.normal(jax.random.key(1), (2, 3, 12))
    optimiser = optax.adam(0.2)
    loss = loss_of("gls", 4)

    def simulated(logits):
        estimate = trials.sweep(
            jax.random.key(2),
            jax.nn.log_softmax(logits),
            jax.nn.log_softmax(target),
            scheme="gls",
            num_drafts=(4,),
            num_trials=20_000,
        )
        return estimate.mean[:, 0]

    @jax.jit
    def train(logits):
        def step(carry, _):
            logits, state = carry
            value, slope = jax.value_and_grad(lambda x: jnp.mean(loss(x, target)))(logits)
            update, state = optimiser.update(slope, state)
            return (optax.apply_updates(logits, update), state), value

        (logits, _), values = jax.lax.scan(step, (logits, optimiser.init(logits)), None, length=30)
        return logits, values

    trained, values = train(logits)
    assert float(values[-1]) < 0.3 * float(values[0])
    before, after = simulated(logits), simulated(trained)
    assert float(jnp.min(after - before)) > 0.02
    np.testing.assert_allclose(1 - after, loss(trained, target), atol=0.02)


@pytest.mark.parametrize(
    ("draft", "target", "options", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3), {}, r"equal shapes \[..., N\], got \[2, 3\] and \[3\]"),
        (np.zeros((4, 2, 3)), np.zeros((2, 3)), {}, "distributions of their own are not supported"),
        (
            np.zeros(3, int),
            np.zeros(3),
            {},
            "draft_logits: expected logits, an array of floats, got dtype int",
        ),
        (
            np.zeros(3),
            np.zeros(()),
            {},
            r"target_logits: expected shape \[..., N\] with N >= 1, got \[\]",
        ),
        (
            np.zeros(3),
            np.full(3, np.nan),
            {},
            "target_logits: expected logits, -inf where .* got NaN or inf",
        ),
        (np.full(3, -np.inf), np.zeros(3), {}, "draft_logits: .* nothing but -inf"),
        (
            np.array([1e300, 0, 0]),
            np.zeros(3),
            {},
            "draft_logits: expected logits, -inf where .* got NaN or inf",
        ),
        ("logits", np.zeros(3), {}, "draft_logits: expected logits, an array of floats, got str$"),
        (
            np.zeros(3),
            None,
            {},
            "target_logits: expected logits, an array of floats, got NoneType$",
        ),
        (
            [[0.0, 1.0], [2.0]],
            np.zeros(3),
            {},
            "draft_logits: .* got list whose rows make no array of numbers",
        ),
        (
            np.ma.array(np.zeros(3), mask=[0, 0, 1]),
            np.zeros(3),
            {},
            "draft_logits: .* masked array; fill it",
        ),
        (
            np.full(4, 0.25),
            np.zeros(4),
            {},
            "draft_logits: .* looks like probabilities: take jnp.log",
        ),
        (
            np.zeros(3),
            np.zeros(3),
            {"scheme": "best"},
            "scheme: expected one of gls, .* got 'best'",
        ),
        (np.zeros(3), np.zeros(3), {"scheme": "block"}, "'block' verifies whole paths"),
        (
            np.zeros(3),
            np.zeros(3),
            {"num_drafts": 0},
            "num_drafts: expected an int of at least 1, got 0",
        ),
        (np.zeros(3), np.zeros(3), {"scheme": "single"}, "'single' takes at most 1, got 4"),
        (
            np.zeros(5000),
            np.zeros(5000),
            {"scheme": "weighted_importance"},
            "expected at most 4096 categories, got 5000",
        ),
        (np.zeros(5000), np.zeros(5000), {"scheme": "specinfer_wor"}, "would enumerate .* chains"),
    ],
)
def test_misuse_is_named(draft, target, options, message):
    with pytest.raises(ValueError, match=message):
        losses.acceptance(draft, target, **({"scheme": "gls", "num_drafts": 4} | options))
