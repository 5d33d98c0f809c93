"""What the dialects refuse, what has no framework to run, and the tables of them."""

import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tables

from rmsprop_jax import RMSPropState, dialects
from rmsprop_jax._optimizer.transform import get_config


def train(tx: Any, params: Any, gradients: Any) -> Any:
    """The parameters after the gradients, which may be functions of them."""
    state = tx.init(params)
    for g in gradients:
        updates, state = tx.update(g(params) if callable(g) else g, state, params)
        assert isinstance(state, RMSPropState)
        params = optax.apply_updates(params, updates)
    return params


def first_update(tx: Any, params: Any, gradients: Any) -> Any:
    return tx.update(gradients, tx.init(params), params)[0]


@pytest.mark.parametrize("name", dialects.__all__)
def test_numbers_schedules_and_traced_arrays_are_the_same_rule(name):
    """Also under jit with the numbers as arguments, and with a leaf that is None."""
    dialect = getattr(dialects, name)
    rate, *others = inspect.signature(dialect).parameters.values()
    numbers = {rate.name: 0.01} | {
        p.name: p.default or 0.5
        for p in others
        if isinstance(p.default, float) or p.name in ("weight_decay", "momentum")
    }
    static = {}
    if name == "keras_legacy":  # where it decides the rule
        static["momentum"] = numbers.pop("momentum")
    params = {"w": jnp.array([0.5, -2.0]), "frozen": None}
    gradients = {"w": jnp.array([3.0, -1e-3]), "frozen": None}

    def run(numbers):
        moved = train(dialect(**numbers, **static), params, [gradients] * 3)
        return moved["w"] - params["w"]

    expected = run(numbers)
    assert np.isfinite(expected).all()
    traced = jax.jit(run)({k: jnp.float32(v) for k, v in numbers.items()})
    np.testing.assert_allclose(traced, expected, rtol=5e-6)
    scheduled = run(
        numbers | {rate.name: lambda count: jnp.where(count < 0, 1.0, 0.01)}
    )
    np.testing.assert_allclose(scheduled, expected, rtol=5e-6)


@pytest.mark.parametrize("name", dialects.__all__)
def test_injected_it_is_the_same_rule(name):
    """Without a buffer, and without params, that the plain one does not need."""
    dialect = getattr(dialects, name)
    rate = next(iter(inspect.signature(dialect).parameters))
    params, gradients = jnp.array([0.5, -2.0]), jnp.array([3.0, -1e-3])
    plain, injected = dialect(0.1), optax.inject_hyperparams(dialect)(**{rate: 0.1})
    states: Any = plain.init(params), injected.init(params)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1].inner_state)
    with jax.numpy_dtype_promotion("standard"):  # inject_hyperparams needs it
        for _ in range(3):
            one, first = plain.update(gradients, states[0])
            other, second = injected.update(gradients, states[1])
            states = first, second
            chex.assert_trees_all_close(one, other, rtol=1e-5)


def test_where_a_number_decides_the_rule_it_is_not_traced():
    """Injected, a momentum of 0 would move ε into the root: 100 times the update."""
    with pytest.raises(
        TypeError, match=r"momentum must be a Python number .*static_args"
    ):
        optax.inject_hyperparams(dialects.keras_legacy)(momentum=0.0).init(jnp.ones(2))
    static = optax.inject_hyperparams(dialects.keras_legacy, static_args="momentum")
    state: Any = static(momentum=0.0).init(jnp.ones(2))
    assert state.inner_state.mu is None


def test_burns_own_numbers():
    """Burn is not run: these are what its own test expects.

    `test_rmsprop_optimizer_with_numbers_basic` in its rmsprop.rs at 0212f8e2: a linear
    layer of ones, whose outputs are summed, after two batches.
    """
    batches = jnp.array(
        [
            [
                [0.6294, 0.0940, 0.8176, 0.8824, 0.5228, 0.4310],
                [0.7152, 0.9559, 0.7893, 0.5684, 0.5939, 0.8883],
            ],
            [
                [0.8491, 0.2108, 0.8939, 0.4433, 0.5527, 0.2528],
                [0.3270, 0.0412, 0.5538, 0.9605, 0.3195, 0.9085],
            ],
        ]
    )
    params = {"weight": jnp.ones((6, 6)), "bias": jnp.full((1, 6), 0.5)}
    tx = dialects.burn(
        0.01, alpha=0.99, epsilon=1e-8, weight_decay=0.05, momentum=0.9, centered=False
    )

    def gradient(batch):
        def total(params):
            return jnp.sum(batch @ params["weight"] + params["bias"])

        return jax.grad(total)

    params = train(tx, params, map(gradient, batches))
    rows = [0.743937, 0.783809, 0.742881, 0.740366, 0.748005, 0.743710]
    expected = jnp.broadcast_to(jnp.array(rows)[:, None], (6, 6))
    np.testing.assert_allclose(params["weight"], expected, atol=1e-6)
    np.testing.assert_allclose(params["bias"], np.full((1, 6), 0.239199), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("nature_dqn", lambda variance: np.sqrt(variance + 0.01)),
        ("minatar", lambda variance: np.sqrt(variance) + 0.01),
    ],
)
def test_dqn_is_the_released_code(name, divisor):
    """Nature's NeuralQLearner.lua, whose framework is not run, and MinAtar's dqn.py."""
    gradients = np.random.default_rng(0).normal(0.3, 1.0, (50, 8)).astype(np.float32)
    w, g, g2 = np.zeros(8), np.zeros(8), np.zeros(8)
    for dw in gradients:
        g = 0.95 * g + 0.05 * dw
        g2 = 0.95 * g2 + 0.05 * dw**2
        w -= 0.00025 * dw / divisor(g2 - g**2)
    params = train(getattr(dialects, name)(), jnp.zeros(8), gradients)
    np.testing.assert_allclose(params, w, rtol=2e-5, atol=1e-9)


def test_graves_is_his_equations():
    gradients = np.random.default_rng(0).normal(0.3, 1.0, (50, 8)).astype(np.float32)
    w, n, g, delta = (np.zeros(8) for _ in range(4))
    for t, e in enumerate(gradients):
        n = 0.95 * n + 0.05 * e**2
        g = 0.95 * g + 0.05 * e
        delta = 0.9 * delta - 1e-4 * (1 + t) * e / np.sqrt(n - g**2 + 1e-4)
        w += delta
    tx = dialects.graves(lambda count: 1e-4 * (1 + jnp.asarray(count).astype(float)))
    params = train(tx, jnp.zeros(8), gradients)
    np.testing.assert_allclose(params, w, rtol=2e-5, atol=1e-9)


def test_legacy_keras_moves_eps_with_momentum():
    plain, heavy = (
        get_config(dialects.keras_legacy(momentum=m)).rule for m in (0.0, 0.9)
    )
    assert (plain.eps_in_sqrt, heavy.eps_in_sqrt) == (False, True)
    assert get_config(dialects.keras_legacy(epsilon=0)).hyperparams.eps == 1e-7


def test_timm_decays_what_it_does_not_step():
    """Under caution a decoupled decay still goes to every entry."""
    params, gradients = jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])
    tx = dialects.timm(
        0.5, momentum=0.9, weight_decay=0.25, decoupled_decay=True, caution=True
    )
    updates = first_update(tx, params, gradients)
    assert updates[1] == -0.5 * 0.25


def test_timm_leaves_integers_and_absent_gradients_alone():
    params = {"w": jnp.ones(2), "steps": jnp.array(3), "frozen": jnp.ones(2)}
    gradients = {"w": jnp.ones(2), "steps": jnp.array(0), "frozen": None}
    tx = dialects.timm(
        0.5,
        momentum=0.9,
        weight_decay=0.25,
        decoupled_decay=True,
        corrected_weight_decay=True,
        caution=True,
    )
    updates = first_update(tx, params, gradients)
    assert updates["frozen"] is None
    assert updates["steps"] == 0
    assert (updates["w"] < 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dialects.torch(lr=-1.0), "lr must be .* not negative"),
        (
            lambda: dialects.optax(0.1, initial_scale=1.0, bias_correction=True),
            r"initial_scale must be 0 with bias_correction.* but it was 1\.0",
        ),
        (
            lambda: dialects.keras_legacy(momentum=1.5),
            r"momentum must be between 0 and 1.* but it was 1\.5",
        ),
        (
            lambda: dialects.timm(corrected_weight_decay=True),
            "corrected_weight_decay must come with decoupled_decay=True",
        ),
        (lambda: dialects.timm(caution=True), "caution must come with momentum"),
        (
            lambda: dialects.timm(max_lr=0.1),
            "max_lr must come with corrected_weight_decay=True",
        ),
        (
            lambda: dialects.timm(
                optax.linear_schedule(0.1, 0.0, 10),
                decoupled_decay=True,
                corrected_weight_decay=True,
            ),
            "max_lr must be given with corrected_weight_decay if lr is a schedule",
        ),
        (
            # As inject_hyperparams would give it: the present rate, not the largest.
            lambda: dialects.timm(
                jnp.asarray(0.1), decoupled_decay=True, corrected_weight_decay=True
            ),
            "max_lr must be given with corrected_weight_decay .* or an array",
        ),
        (
            lambda: dialects.timm(
                0.0, decoupled_decay=True, corrected_weight_decay=True
            ),
            r"must be greater than 0 with corrected_weight_decay, but it was 0\.0",
        ),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_timms_decay_needs_params():
    tx = dialects.timm(
        weight_decay=0.1, decoupled_decay=True, momentum=0.9, caution=True
    )
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_every_dialect_is_in_a_table():
    assert {*tables.FRAMEWORKS, *tables.PAPERS} == set(dialects.__all__)


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_are_the_code(name):
    """Write them anew with `python tests/support/tables.py`."""
    found = tables.in_page(name, tables.PAGE.read_text())
    assert found is not None
    assert found[0] == tables.TABLES[name]()


def test_numpy_numbers_are_numbers():
    """Also where a dialect asks whether one is 0."""
    p, g = jnp.ones(2), jnp.array([1.0, -2.0])
    zero: Any = np.float32(0)
    for dialect, options in [
        (dialects.keras_legacy, {"momentum": zero, "epsilon": 1.0}),
        (dialects.keras_legacy, {"epsilon": zero}),
        (dialects.timm, {"lr": np.float32(0.5), "momentum": zero}),
    ]:
        python = {name: float(value) for name, value in options.items()}
        ours, expected = (
            first_update(dialect(**each), p, g) for each in (options, python)
        )
        np.testing.assert_array_equal(ours, expected)
    corrected = {"decoupled_decay": True, "corrected_weight_decay": True}
    dialects.timm(zero + np.float32(0.1), **corrected)
    with pytest.raises(ValueError, match="caution must come with momentum"):
        dialects.timm(caution=True, momentum=zero)
    with pytest.raises(ValueError, match="must be greater than 0"):
        dialects.timm(max_lr=zero, **corrected)


def test_timms_largest_rate_may_be_narrower_than_the_rest(x64):
    """Under strict promotion, with float64 enabled."""
    p = jnp.ones(2)
    tx = dialects.timm(
        jnp.float32(0.5),
        max_lr=jnp.bfloat16(1.0),
        weight_decay=0.25,
        decoupled_decay=True,
        corrected_weight_decay=True,
    )
    updates = first_update(tx, p, jnp.zeros(2))
    np.testing.assert_allclose(updates, -0.5 * 0.5 * 0.25)


def test_caution_is_for_real_leaves():
    p = {"w": jnp.ones(2, jnp.complex64)}
    tx = dialects.timm(0.1, momentum=0.9, caution=True)
    with pytest.raises(ValueError, match=r"caution is for real .*\['w'\] was complex"):
        tx.update(p, tx.init(p), p)


def test_what_only_chooses_torchs_implementation_changes_nothing():
    g = jnp.array([1.0, -2.0])
    updates = [
        tx.update(g, tx.init(g))[0]
        for tx in (
            dialects.torch(0.1),
            dialects.torch(0.1, foreach=True, capturable=True, differentiable=True),
            dialects.torch(0.1, foreach=False),
            dialects.torch(0.1, 0.99, 1e-8, 0.0, 0.0, False, False, None, False, False),  # noqa: FBT003
        )
    ]
    for other in updates[1:]:
        np.testing.assert_array_equal(updates[0], other)


def test_caution_counts_only_what_steps_with_its_gradient():
    p, g = jnp.zeros(4), jnp.array([0.0, 1.0, 2.0, -1.0])
    plain, cautious = (
        first_update(dialects.timm(0.1, momentum=0.9, caution=caution), p, g)
        for caution in (False, True)
    )
    np.testing.assert_allclose(cautious, plain / 0.75, rtol=1e-6)
