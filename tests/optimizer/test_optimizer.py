"""What optax asks of its own optimizers, and what it lacks."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.untyped import (
    RMSPropState,
    apply_updates,
    master_weights,
    rmsprop,
    stochastic_rounding,
)

from rmsprop_jax import dialects, scale_by_rmsprop

PLAIN = {}
ALL_STATE = {"momentum": 0.9, "centered": True}
EVERYTHING = {
    "momentum": 0.9,
    "centered": True,
    "nesterov": True,
    "maximize": True,
    "eps_in_sqrt": True,
    "bias_correction": True,
    "weight_decay": 0.01,
}
CONFIGURATIONS = {"plain": PLAIN, "all state": ALL_STATE, "everything": EVERYTHING}
each_configuration = pytest.mark.parametrize(
    "options", CONFIGURATIONS.values(), ids=CONFIGURATIONS
)


def tree(dtype=jnp.float32):
    return {
        "a": jnp.array([1.5, -2.0, 0.25], dtype),
        "b": [jnp.array(3.0, dtype), jnp.zeros((0, 2), dtype)],
    }


@pytest.mark.numerics
@each_configuration
@pytest.mark.parametrize("loss", ["parabola", "rosenbrock"])
def test_converges(loss, options):
    # With bias correction the first variance is 0, and the first step g/eps.
    unfit = ("maximize", "nesterov", "bias_correction", "weight_decay")
    options = {k: v for k, v in options.items() if k not in unfit}
    if loss == "parabola":
        start, target = jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0])

        steps, rate = 3000, 0.02
    else:
        start, target = jnp.array([-1.0, 1.5]), jnp.ones(2)

        steps, rate = 20000, 1e-3

    def value(p):
        if loss == "parabola":
            return jnp.sum((p - target) ** 2)
        return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2

    def schedule(count):
        return rate * (1 - count.astype(jnp.float32) / steps)

    tx = rmsprop(schedule, **options)

    def step(carry, _):
        p, state = carry
        updates, state = tx.update(jax.grad(value)(p), state, p)
        return (apply_updates(p, updates), state), None

    (p, _), _ = jax.jit(
        lambda: jax.lax.scan(step, (start, tx.init(start)), length=steps)
    )()
    np.testing.assert_allclose(p, target, atol=2e-2)


@each_configuration
def test_compiles_once(options):
    tx = rmsprop(0.1, **options)
    p = tree()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(p, state):
        updates, state = tx.update(p, state, p)
        return apply_updates(p, updates), state

    state = tx.init(p)
    for _ in range(3):
        p, state = step(p, state)
    assert int(state.count) == 3
    chex.clear_trace_counter()


def test_ignores_extra_arguments_meant_for_others():
    tx = rmsprop(0.1)
    p = tree()
    expected = tx.update(p, tx.init(p), p)
    chex.assert_trees_all_equal(
        tx.update(p, tx.init(p), p, value=1.0, unheard_of=None), expected
    )


@pytest.mark.numerics
@each_configuration
def test_numbers_may_be_injected_traced_or_python(options):
    p = tree()
    flags = {k: v for k, v in options.items() if isinstance(v, bool)}
    numbers = {k: v for k, v in options.items() if k not in flags}
    numbers |= {"learning_rate": 0.1, "alpha": 0.9, "eps": 1e-6}

    def three_steps(make, **numbers):
        tx = make(**numbers, **flags)
        q, state = p, tx.init(p)
        for _ in range(3):
            updates, state = tx.update(p, state, q)
            q = apply_updates(q, updates)
        return q

    expected = three_steps(rmsprop, **numbers)
    close = functools.partial(chex.assert_trees_all_close, expected, rtol=2e-5)
    close(jax.jit(lambda: three_steps(rmsprop, **numbers))())
    close(jax.jit(lambda n: three_steps(rmsprop, **n))(numbers))
    close(three_steps(optax.inject_hyperparams(rmsprop), **numbers))
    close(jax.jit(lambda: three_steps(optax.inject_hyperparams(rmsprop), **numbers))())


def test_an_injected_weight_decay_of_0_needs_params():
    """And the error says how it is avoided."""
    tx = optax.inject_hyperparams(rmsprop)(0.1, weight_decay=0.0)
    g = jnp.ones(2)
    with pytest.raises(ValueError, match="leave weight_decay out, or name it in stati"):
        tx.update(g, tx.init(g))


@pytest.mark.numerics
def test_an_array_of_one_element_is_a_number():
    """As in torch, where a learning rate may be a tensor of one."""
    g = jnp.array([3.0, -1.0])
    for options in ({"learning_rate": 0.5}, {"momentum": 0.5}, {"alpha": 0.5}):
        arrays = {name: np.array([x], np.float32) for name, x in options.items()}
        updates = [
            tx.update(g, tx.init(g))[0]
            for tx in (rmsprop(**options), rmsprop(**arrays))
        ]
        np.testing.assert_allclose(*updates, rtol=1e-6)


def test_injected_numbers_can_be_changed():
    p = tree()
    tx = optax.inject_hyperparams(rmsprop)(learning_rate=0.1, momentum=0.9)
    state: Any = tx.init(p)
    assert optax.tree.get(state, "nu")["a"].shape == (3,)
    state.hyperparams["learning_rate"] = jnp.asarray(0.0)
    updates, _ = jax.jit(tx.update)(p, state, p)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, p))


def test_the_state_never_depends_on_a_traced_value():
    p = tree()
    traced = jax.eval_shape(lambda m: rmsprop(momentum=m).init(p), 0.0)
    assert jax.tree.structure(traced.mu) == jax.tree.structure(p)
    assert rmsprop(momentum=0.0).init(p).mu is None
    assert rmsprop(momentum=np.float32(0)).init(p).mu is None


DTYPES = ["float16", "bfloat16", "float32"]


def test_the_step_count_stays_at_the_largest_int32():
    tx = rmsprop(0.1, bias_correction=True)
    p = jnp.ones(2)
    state = tx.init(p)._replace(count=jnp.int32(jnp.iinfo(jnp.int32).max))
    updates, after = tx.update(p, state)
    assert after.count == state.count
    assert np.all(np.isfinite(updates))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("gradient", DTYPES)
@pytest.mark.parametrize("parameter", DTYPES)
def test_dtypes_never_drift(parameter, gradient, decay):
    """With float32 gradients of bfloat16 parameters, optax's nu changes its dtype."""
    tx = rmsprop(0.1, momentum=0.9, centered=True, weight_decay=decay)
    p, g = tree(parameter), tree(gradient)
    # Dtypes are known once a program is traced, without its being compiled.
    state = jax.eval_shape(tx.init, p)
    updates, after = jax.eval_shape(tx.update, g, state, p)
    assert {x.dtype.name for x in jax.tree.leaves(updates)} == {gradient}
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    kinds = {x.dtype.name for x in jax.tree.leaves((after.nu, after.mu))}
    assert kinds == {"float32"}

    def step(state, _):
        return jax.lax.cond(
            state.count > 1,
            lambda: tx.update(g, state, p)[1],
            lambda: tx.update(jax.tree.map(jnp.zeros_like, g), state, p)[1],
        ), None

    def steps(step, state):
        return jax.eval_shape(lambda s: jax.lax.scan(step, s, length=3), state)

    steps(step, state)
    # These two compute across dtypes themselves, which strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        wrappers: list[Any] = [
            optax.MultiSteps(tx, 2),
            optax.inject_hyperparams(rmsprop)(0.1, weight_decay=decay),
        ]
        for wrapped in wrappers:
            steps(
                lambda s, _, tx=wrapped: (tx.update(g, s, p)[1], None),
                jax.eval_shape(wrapped.init, p),
            )


@pytest.mark.numerics
def test_float64_stays(x64):
    p = {"wide": jnp.ones(2), "narrow": jnp.ones(2, jnp.float32)}
    state = rmsprop(momentum=0.9).init(p)
    for moments in (state.nu, state.mu):
        assert moments["wide"].dtype == jnp.float64
        assert moments["narrow"].dtype == jnp.float32
    # A float64 gradient of a float32 parameter is computed with as it is.
    g = jnp.array([1.0, 1 + 1e-12])
    updates, _ = rmsprop(1.0, 0.75, 0.0).update(g, rmsprop().init(p["narrow"]))
    assert updates.dtype == jnp.float64


@pytest.mark.numerics
def test_eps_never_meets_float16():
    """In float16 the default eps is 0, and 0/0 gives NaN in torch and in optax."""
    g = jnp.array([0.0, 6e-8, 1e-4, 6e4], jnp.float16)
    updates, state = rmsprop(0.1).update(g, rmsprop().init(g))
    assert np.all(np.isfinite(updates))
    # 0.1·g / √(0.01·g²) = 1, but for what eps does to the smallest.
    np.testing.assert_allclose(updates, [0, -0.3735, -1, -1], rtol=2e-3)
    assert np.all(np.isfinite(state.nu))


@pytest.mark.numerics
def test_multi_steps_is_one_step_of_the_mean():
    p, g = tree(), tree()
    tx = rmsprop(0.1, **ALL_STATE)
    several = optax.MultiSteps(tx, 2)
    state = several.init(p)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an integer
        for scale in (0.5, 1.5):
            scaled = jax.tree.map(lambda x, s=scale: s * x, g)
            updates, state = several.update(scaled, state, p)
    expected, inner = tx.update(g, tx.init(p), p)
    chex.assert_trees_all_close((updates, state.inner_opt_state), (expected, inner))


def test_map_params_finds_every_moment():
    p = tree()
    state = rmsprop(**ALL_STATE).init(p)
    marked = optax.tree.map_params(
        rmsprop(**ALL_STATE),
        lambda _, name: name,
        state,
        {"a": "a", "b": ["b0", "b1"]},
        transform_non_params=lambda _: "not a parameter",
    )
    names = {"a": "a", "b": ["b0", "b1"]}
    assert marked == RMSPropState("not a parameter", names, names, names)


@pytest.mark.parametrize("wrap", [lambda tx: tx, master_weights])
def test_map_params_beside_a_tree_where_the_state_has_no_leaf(wrap):
    """As `RMSPropState` says. The masters of float32 parameters are None as well."""
    p = {"w": jnp.ones(2), "narrow": jnp.ones(2, jnp.bfloat16), "steps": jnp.arange(3)}
    tx = wrap(rmsprop(**ALL_STATE))
    names = {name: name for name in p}
    marked: Any = optax.tree.map_params(
        tx,
        lambda x, name: x if x is None else name,
        tx.init(p),
        names,
        is_leaf=lambda x: x is None,
    )
    for field in ("nu", "mu", "grad_mean"):
        assert optax.tree.get(marked, field) == names | {"steps": None}
    if wrap is master_weights:
        assert marked.masters == {"w": None, "narrow": "narrow", "steps": None}


def test_no_two_leaves_of_a_state_share_a_buffer():
    """Or donating it fails: XLA wants each buffer once."""
    p = {"a": jnp.ones([]), "b": jnp.ones([]), "c": jnp.ones([], jnp.bfloat16)}
    number = jnp.float32(0.0)
    makers: list[Any] = [
        rmsprop(number, initial_scale=number, seed=jnp.int32(0), **ALL_STATE),
        rmsprop(state_dtype="bfloat16", **ALL_STATE),
        optax.inject_hyperparams(rmsprop)(0.1, initial_scale=0.0, **ALL_STATE),
        optax.chain(rmsprop(), stochastic_rounding()),
        master_weights(rmsprop(momentum=0.9)),
    ]
    for tx in makers:
        with jax.numpy_dtype_promotion("standard"):  # inject_hyperparams needs it
            fresh = tx.init(p)
            _, after = tx.update(p, fresh, p)
        given = {x.unsafe_buffer_pointer() for x in [*jax.tree.leaves(p), number]}
        for state in (fresh, after):
            own = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
            assert len({*own, *given}) == len(own) + len(given)
        jax.jit(lambda state: state, donate_argnums=0)(fresh)


def test_outside_of_jit_leaves_may_be_on_devices_of_their_own():
    places = jax.devices()[:2]
    p = [jax.device_put(jnp.ones(3), place) for place in places]
    for options in ({"bias_correction": True}, {"state_dtype": "bfloat16"}):
        tx = rmsprop(optax.exponential_decay(0.1, 10, 0.9), **options)
        state = tx.init(p)
        _, state = tx.update(p, state, p)
        updates, state = tx.update(p, state, p)
        for tree in (updates, state.nu):
            assert [x.device for x in jax.tree.leaves(tree)] == places


def test_complex_gradients_are_torchs_when_conjugated():
    """As the docstring says: torch's is 2(z − c) for |z − c|², ours its conjugate."""
    z, c = jnp.array([3 + 4j, -2 + 5j]), jnp.array([0.5 - 1j, 1j])

    def loss(z):
        return jnp.sum(jnp.abs(z - c) ** 2)

    np.testing.assert_allclose(jnp.conj(jax.grad(loss)(z)), 2 * (z - c), rtol=1e-6)
    tx = rmsprop(0.1)

    def end(turned):
        p, state = z, tx.init(z)
        for _ in range(100):
            gradients = jax.tree.map(turned, jax.grad(loss)(p))
            updates, state = tx.update(gradients, state, p)
            p = apply_updates(p, updates)
        return loss(p)

    assert end(jnp.conj) < 0.1 * loss(z)
    assert end(lambda g: g) > loss(z)


def test_no_infinity_on_the_way():
    """jax.debug_infs finds none in any rule, where the gradient is 0."""
    g = jnp.array([0.0, 1.0])
    with jax.debug_infs(True):  # noqa: FBT003
        for name in dialects.__all__:
            tx = getattr(dialects, name)(0.1)
            for update in (tx.update, jax.jit(tx.update)):
                updates, _ = update(g, tx.init(g), g)
                assert updates[0] == 0


@each_configuration
def test_init_of_shapes_alone(options):
    p = tree(jnp.bfloat16)
    tx = rmsprop(**options)
    shapes = jax.eval_shape(lambda: p)
    chex.assert_trees_all_equal(tx.init(shapes), tx.init(p))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(tx.init, shapes), jax.eval_shape(lambda: tx.init(p))
    )


@each_configuration
def test_state_has_the_parameters_sharding_with_and_without_jit(options):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    p = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("x")))
    tx = rmsprop(**options)
    # jax.set_mesh came after the lowest version allowed.
    use_mesh = getattr(jax, "set_mesh", None) or getattr(jax.sharding, "use_mesh")  # noqa: B009
    with use_mesh(mesh):
        eager, compiled = tx.init(p), jax.jit(tx.init)(p)
        assert jax.tree.map(jax.typeof, eager) == jax.tree.map(jax.typeof, compiled)
        assert jax.typeof(eager.nu) == jax.typeof(p)
        updates, after = jax.jit(tx.update)(p, eager, p)
    assert jax.typeof(updates) == jax.typeof(p)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, eager)


@pytest.mark.numerics
def test_absent_leaves():
    p = {"a": jnp.ones(2), "b": None, "c": optax.MaskedNode(), "d": {}}
    tx = rmsprop(0.1, weight_decay=0.1, **ALL_STATE)
    state = tx.init(p)
    updates, after = jax.jit(tx.update)(p, state, p)
    assert jax.tree.structure(updates) == jax.tree.structure(p)
    # A leaf without a gradient this time keeps its state; optax loses it.
    updates, kept = tx.update(p | {"a": None}, after, p)
    assert updates["a"] is None
    chex.assert_trees_all_equal(kept._replace(count=after.count), after)
    masked: Any = optax.masked(rmsprop(0.1, **ALL_STATE), {"a": True, "z": False})
    q = {"a": jnp.ones(2), "z": jnp.ones(3)}
    updates, _ = masked.update(q, masked.init(q), q)
    chex.assert_trees_all_equal(updates["z"], q["z"])
    for empty in ((), {}, None):
        bare = rmsprop(0.1, **ALL_STATE)
        updates, _ = bare.update(empty, bare.init(empty), empty)
        assert updates == empty


@pytest.mark.numerics
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_integers_get_a_zero_update_and_no_state(decay):
    p = {"w": jnp.ones(2), "steps": jnp.arange(3), "on": jnp.ones([], bool)}
    tx = rmsprop(0.1, weight_decay=decay, **ALL_STATE)
    state = tx.init(p)
    assert state.nu["steps"] is None
    assert state.mu["on"] is None

    def loss(p):
        return jnp.sum(p["w"] ** 2)

    g = jax.grad(loss, allow_int=True)(p)
    assert g["steps"].dtype == jax.dtypes.float0
    updates, state = tx.update(g, state, p)
    after: Any = apply_updates(p, updates)
    chex.assert_trees_all_equal(after["steps"], p["steps"])
    chex.assert_trees_all_equal_shapes_and_dtypes(p, after)
    zeros = {"w": p["w"], "steps": jnp.zeros(3, jnp.int32), "on": jnp.zeros([], bool)}
    updates, _ = jax.jit(tx.update)(zeros, state, p)
    chex.assert_trees_all_equal(updates["steps"], zeros["steps"])


@pytest.mark.numerics
@each_configuration
def test_vmap_over_models_and_numbers(options):
    rates, alphas = jnp.array([0.1, 0.2]), jnp.array([0.9, 0.99])
    starts = jnp.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])

    def one(rate, alpha, p):
        tx = rmsprop(rate, alpha, **options)
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(p, state, p)
            p = apply_updates(p, updates)
        return p, state

    together = jax.jit(jax.vmap(one))(rates, alphas, starts)
    apart = [one(*each) for each in zip(rates, alphas, starts, strict=True)]
    expected = jax.tree.map(lambda *xs: jnp.stack(xs), *apart)
    chex.assert_trees_all_close(together, expected, rtol=1e-5)


def trajectory(tx, steps=20):
    """The parameters, the state and the updates after gradients that turn around."""
    p = {"a": jnp.array([1.5, -2.0, 0.25]), "b": jnp.array(3.0)}

    def step(carry, t):
        p, state, _ = carry
        updates, state = tx.update(jax.tree.map(lambda x: x + jnp.sin(t), p), state, p)
        return (apply_updates(p, updates), state, updates), None

    start = (p, tx.init(p), jax.tree.map(jnp.zeros_like, p))
    with jax.numpy_dtype_promotion("standard"):  # as optax's schedules need
        return jax.lax.scan(step, start, jnp.arange(steps, dtype=float))[0]


@pytest.mark.numerics
def test_momentum_is_that_of_optax_and_its_buffer_has_the_norm_of_the_update():
    """As docs/how-to.md says of what to log."""

    def learning_rate(count):
        return 0.1 / (2 + count.astype(jnp.float32))

    p, state, updates = trajectory(rmsprop(learning_rate, momentum=0.9))
    chain = optax.chain(
        scale_by_rmsprop(),
        optax.trace(0.9),
        optax.scale_by_learning_rate(learning_rate),
    )
    expected, _, _ = trajectory(chain)
    chex.assert_trees_all_close(p, expected, rtol=1e-5)
    norm = learning_rate(state.count - 1) * optax.tree.norm(state.mu)
    np.testing.assert_allclose(norm, optax.tree.norm(updates), rtol=1e-5)


@pytest.mark.numerics
def test_schedule_free_is_that_of_optax():
    warmup = optax.warmup_constant_schedule(0.0, 0.01, 5)
    scale = scale_by_rmsprop(alpha=0.999, bias_correction=True)
    base = optax.chain(scale, optax.scale_by_learning_rate(warmup))
    ours = trajectory(optax.contrib.schedule_free(base, warmup))
    theirs = trajectory(optax.contrib.schedule_free_adamw(0.01, warmup_steps=5))
    chex.assert_trees_all_close(ours[0], theirs[0], rtol=1e-5)
    averages = (
        optax.contrib.schedule_free_eval_params(s, p) for p, s, _ in (ours, theirs)
    )
    chex.assert_trees_all_close(*averages, rtol=1e-5)


@pytest.mark.numerics
def test_scale_by_rmsprop_is_rmsprop_without_the_rate():
    p = tree()
    chain = optax.chain(scale_by_rmsprop(momentum=0.9), optax.scale(-0.1))
    whole = rmsprop(0.1, momentum=0.9)
    for _ in range(2):
        ours, _ = whole.update(p, whole.init(p))
        theirs, _ = chain.update(p, chain.init(p))
        chex.assert_trees_all_close(ours, theirs, rtol=1e-6)


@pytest.mark.numerics
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        {"a": True, "b": False},
        {"a": True, "b": [False, False]},
        lambda params: {"a": True, "b": False},
        lambda params: jax.tree.map(lambda p: p.ndim == 1, params),
    ],
)
def test_decay_follows_its_mask(mask, decoupled):
    p = tree()
    options = {"learning_rate": 0.1, "decoupled_weight_decay": decoupled}
    masked = rmsprop(weight_decay=0.5, weight_decay_mask=mask, **options)
    decayed, bare = rmsprop(weight_decay=0.5, **options), rmsprop(**options)
    g = jax.tree.map(jnp.ones_like, p)
    ours, with_it, without = (
        tx.update(g, tx.init(p), p)[0] for tx in (masked, decayed, bare)
    )
    chex.assert_trees_all_equal(ours, {"a": with_it["a"], "b": without["b"]})


def test_a_schedule_is_asked_with_the_count_before_the_step():
    asked = []
    tx = rmsprop(lambda count: asked.append(int(count)) or 0.1)
    state = tx.init(jnp.ones(2))
    for _ in range(3):
        _, state = tx.update(jnp.ones(2), state)
    assert asked == [0, 1, 2]


def test_the_state_is_found_by_name_in_any_chain():
    tx = optax.chain(optax.clip_by_global_norm(1.0), rmsprop(**ALL_STATE))
    state = tx.init(tree())
    for name in ("nu", "mu", "grad_mean"):
        chex.assert_trees_all_equal_shapes(optax.tree.get(state, name), tree())


def test_pmap():
    tx = rmsprop(0.1, momentum=0.9, weight_decay=0.1)
    p = jnp.arange(16.0).reshape(8, 2)

    def step(p):
        g = jax.lax.pmean(p, "devices")
        return tx.update(g, tx.init(p), p)[0]

    together = jax.pmap(step, axis_name="devices")(p)
    mean = p.mean(axis=0)
    apart = jnp.stack([tx.update(mean, tx.init(row), row)[0] for row in p])
    np.testing.assert_allclose(together, apart, rtol=1e-6)


@pytest.mark.numerics
def test_x_is_zero_where_the_gradient_is_whatever_the_divisor():
    g = jnp.array([0.0, -0.0, 1.0])
    for eps, inside, centered in itertools.product((0.0, 1e-8), *[[False, True]] * 2):
        tx = rmsprop(0.1, 0.9, eps, centered=centered, eps_in_sqrt=inside)
        updates, _ = tx.update(g, tx.init(g))
        np.testing.assert_array_equal(updates[:2], 0)
        assert np.isfinite(updates[2])
