"""Fewer bits, same run: stochastic rounding, and what rests on it."""

from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.encoding import make_salt
from support.untyped import apply_updates, master_weights, rmsprop, stochastic_rounding

from rmsprop_jax._optimizer.bfloat16_rounding import round_to_bfloat16
from rmsprop_jax._optimizer.random_bits import make_random_bits

pytestmark = pytest.mark.numerics

BF16 = jnp.bfloat16


def train(tx, p, steps=400):
    """Down a parabola about 3, with steps far below bfloat16's resolution there."""

    def step(carry, _):
        p, state = carry
        g = p - jnp.asarray(3, p.dtype)
        updates, state = tx.update(g, state, p)
        return (apply_updates(p, updates), state), None

    with jax.numpy_dtype_promotion("standard"):  # bfloat16 + float32 in apply_updates
        return jax.lax.scan(step, (p, tx.init(p)), length=steps)[0]


def test_narrow_parameters_train():
    p = jnp.full(1 << 14, 2.0, BF16)  # the mean's standard error is 7e-4
    stuck, _ = train(rmsprop(1e-3), p)
    assert np.all(stuck < 2.1)  # 2 + 0.001 is 2
    wide, _ = train(rmsprop(1e-3), p.astype(jnp.float32))
    for tx in (
        optax.chain(rmsprop(1e-3), stochastic_rounding()),
        master_weights(rmsprop(1e-3)),
    ):
        narrow, _ = train(tx, p)
        assert narrow.dtype == BF16
        np.testing.assert_allclose(
            np.asarray(narrow, np.float32).mean(), wide.mean(), rtol=2e-3
        )


def test_updates_land_exactly():
    rng = np.random.default_rng(0)
    p = {
        "narrow": jnp.asarray(
            rng.normal(size=1000) * 10.0 ** rng.integers(-8, 8), BF16
        ),
        "zero": jnp.zeros(10, BF16),
        "wide": jnp.ones(3),
        "none": None,
        "count": jnp.arange(3),
    }
    g = {
        "narrow": jnp.asarray(rng.normal(size=1000) * 1e-3, BF16),
        "zero": jnp.ones(10, BF16),
        "wide": jnp.ones(3),
        "none": None,
        "count": jnp.zeros(3, jnp.int32),
    }
    tx = master_weights(rmsprop(0.3, weight_decay=0.1, momentum=0.9))
    state = tx.init(p)
    q = p
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            updates, state = jax.jit(tx.update)(g, state, q)
            q = apply_updates(q, updates)
            for name in ("narrow", "zero"):
                chex.assert_trees_all_equal(q[name], state.masters[name].astype(BF16))
    assert state.masters["wide"] is None
    # Decay acts on the masters: the run is the one of float32 parameters.
    full = jax.tree.map(lambda x: x.astype(jnp.float32), p["narrow"])
    bare = rmsprop(0.3, weight_decay=0.1, momentum=0.9)
    inner = bare.init(full)
    for _ in range(3):
        updates, inner = bare.update(g["narrow"].astype(jnp.float32), inner, full)
        full = apply_updates(full, updates)
    chex.assert_trees_all_close(state.masters["narrow"], full, rtol=1e-6)
    tx = stochastic_rounding()
    updates, after = jax.jit(tx.update)(g, tx.init(p), p)
    with jax.numpy_dtype_promotion("standard"):
        q = apply_updates(p, updates)
    exact = p["narrow"].astype(jnp.float32) + g["narrow"].astype(jnp.float32)
    bits = make_random_bits(exact, make_salt(leaf=1, use="parameters"))
    chex.assert_trees_all_equal(q["narrow"], round_to_bfloat16(exact, bits >> 16))
    chex.assert_trees_all_equal(updates["wide"], g["wide"])
    assert int(after.count) == 1


AROUND = [lambda tx: optax.chain(tx, stochastic_rounding()), master_weights]


@pytest.mark.parametrize(
    "around", AROUND, ids=["stochastic_rounding", "master_weights"]
)
def test_a_bad_step_is_skipped_inside(around):
    tx = around(optax.apply_if_finite(rmsprop(0.1, momentum=0.9), 5))
    p = {"w": jnp.linspace(1.0, 2.0, 64).astype(BF16)}

    @jax.jit
    def step(p, state, g):
        updates, state = tx.update(g, state, p)
        with jax.numpy_dtype_promotion("standard"):
            return apply_updates(p, updates), state

    p, state = step(p, tx.init(p), p)
    q, after = step(p, state, {"w": p["w"].at[3].set(jnp.nan)})
    chex.assert_trees_all_equal(q, p)
    for name in ("nu", "mu"):
        before, now = (optax.tree.get(s, name) for s in (state, after))
        chex.assert_trees_all_equal(now, before)


@pytest.mark.parametrize(
    "around", AROUND, ids=["stochastic_rounding", "master_weights"]
)
def test_an_equinox_model_stays_narrow(around):
    """The lines of the docstring, and what they are for."""
    model = eqx.nn.Linear(4, 3, dtype=BF16, key=jax.random.key(0))
    tx = around(rmsprop(1e-3))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(gradients, tx.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        trained = eqx.combine(apply_updates(params, updates), static)
        widened = eqx.apply_updates(model, updates)
    assert trained.weight.dtype == BF16
    assert float(abs(trained.weight - model.weight).max()) > 0
    assert widened.weight.dtype == jnp.float32
    if around is master_weights:
        wide = eqx.filter(widened, eqx.is_inexact_array)
        with pytest.raises(
            ValueError, match=r"weight of params .*16 bits.*float32.*opt"
        ):
            tx.update(wide, state, wide)


def test_averages_of_narrow_parameters_are_kept_wide():
    """As the docstring says. 2·0.999¹⁰⁰⁰ + 1 − 0.999¹⁰⁰⁰ = 1.368."""
    one, two = jnp.ones(2, BF16), jnp.full(2, 2.0)

    def end(dtype):
        ema = optax.ema(0.999, debias=False, accumulator_dtype=dtype)
        state: Any = ema.init(one)
        start = state._replace(ema=two.astype(dtype)), two.astype(dtype)

        def step(carry, _):
            state, average = carry
            state = ema.update(one, state)[1]
            return (state, optax.incremental_update(one, average, 0.001)), None

        with jax.numpy_dtype_promotion("standard"):
            state, average = jax.lax.scan(step, start, length=1000)[0]
        return [np.asarray(x, float) for x in (state.ema, average)]

    np.testing.assert_array_equal(end(BF16), 2.0)
    np.testing.assert_allclose(end("float32"), 1.368, rtol=1e-3)


def test_other_narrow_parameters_are_refused():
    tx = stochastic_rounding()
    p = {"w": jnp.ones(2, jnp.float16)}
    with pytest.raises(ValueError, match=r"\['w'\] was float16.*master_weights"):
        tx.update(p, tx.init(p), p)
    for each in (tx, master_weights(rmsprop())):
        with pytest.raises(ValueError, match=r"params must be given"):
            each.update(p, each.init(p))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_fewer_than_16_bits_are_refused(dtype):
    """optax.apply_updates can't add float32 updates to them."""
    params = {"w": jnp.ones(2, dtype)}
    with pytest.raises(ValueError, match=rf"\['w'\] was {dtype}.*Keep it in bfloat16"):
        master_weights(rmsprop(0.1)).init(params)
    tx = stochastic_rounding()
    with pytest.raises(
        ValueError, match=rf"\['w'\] was {dtype}. Keep it in bfloat16.$"
    ):
        tx.update(params, tx.init(params), params)
