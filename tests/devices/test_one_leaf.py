"""A step over one leaf: one kernel, no temporary, and every byte moved once.

How long the kernel takes is what its compiler expects: not measured, but always the
same.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from compilers import estimate
from support.devices import bytes_of, compiled, held, home, kernels
from support.steps import DECAYS, RULES
from support.untyped import rmsprop

from rmsprop_jax import dialects
from rmsprop_jax.precision import master_weights, stochastic_rounding

pytestmark = pytest.mark.devices
each_device = pytest.mark.parametrize(
    "device", ["v5e:2x4", "v5p:2x2x2", "v6e:2x4", "h100:1x1x1"]
)
SHAPES = [(1024, 2048), (3, 3, 256, 512), (1 << 20,)]


def schedule(t):
    return 0.5 / (2 + t.astype(float))


def check(tx, device, *, dtype="float32", shape=SHAPES[0], scalars=1, passes=0):
    """The facts of a step.

    Args:
        scalars: The kernels of a GPU for what all leaves share, such as the count.
        passes: How many more words are read than a step has to.
    """
    p = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    state = jax.eval_shape(tx.init, p)
    program = compiled(tx, p, home(device))
    # Real and imaginary parts of a complex leaf are put together in the second one.
    own = 2 if dtype == "complex64" or passes else 1
    is_tpu = not device.startswith("h100")
    assert own <= kernels(program) <= own + (0 if is_tpu else scalars)
    assert held(program) <= (2**16 if passes else 0 if is_tpu else 2048)
    donated = bytes_of((p, state))
    # An injected number may have moved.
    assert program.memory_analysis().alias_size_in_bytes > donated - 8
    if is_tpu:
        # The gradient is read, and what is donated is read and written.
        least = bytes_of(p) + 2 * donated + passes * 4 * p.size
        moved = program.cost_analysis()["bytes accessed"]
        assert abs(moved - least) / p.size < 0.1
    else:
        expected = estimate(program)
        assert expected.arithmetic < expected.memory


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("rule", RULES)
@each_device
def test_every_rule(device, rule, decay):
    options = {**RULES[rule], **DECAYS[decay]}
    check(rmsprop(0.1, **options), device)
    check(rmsprop(0.1, state_dtype="bfloat16", **options), device, scalars=2)


# What bfloat16 state takes of float32's time. A variance beside a float32 mean has 24
# of the 28 bytes to move.
SHARES = dict.fromkeys(RULES, 0.83) | {"centered": 0.88}


@pytest.mark.parametrize("rule", RULES)
@each_device
def test_a_large_leaf_takes_the_time_of_its_bytes(device, rule):
    """As long as optax's, and with bfloat16 state as much shorter as it is smaller."""
    p, options = jax.ShapeDtypeStruct((8192, 4096), jnp.float32), RULES[rule]

    def expect(tx):
        return estimate(compiled(tx, p, home(device)))

    theirs = expect(optax.rmsprop(0.1, 0.99, eps_in_sqrt=False, **options))
    ours, smaller = (
        expect(rmsprop(0.1, state_dtype=dtype, **options))
        for dtype in ("float32", "bfloat16")
    )
    assert ours.time <= 1.04 * theirs.time
    assert smaller.time <= SHARES[rule] * ours.time
    if device.startswith("h100"):
        assert ours.time <= 1.05 * ours.memory
        assert smaller.time <= 1.05 * smaller.memory


@pytest.mark.parametrize("shape", SHAPES[1:])
@each_device
def test_every_shape(device, shape):
    for dtype in ("float32", "bfloat16"):
        tx = rmsprop(0.1, momentum=0.9, state_dtype=dtype)
        check(tx, device, shape=shape, scalars=2)


@each_device
def test_numbers_that_are_computed(device):
    """On a GPU they take one kernel for all leaves."""
    for options in (
        {"learning_rate": schedule},
        {"learning_rate": schedule, "alpha": schedule, "momentum": schedule},
        {"learning_rate": 0.1, "eps": schedule, "weight_decay": schedule},
        {"learning_rate": 0.1, "bias_correction": True},
        {"learning_rate": 0.1, "bias_correction": True, "centered": True},
    ):
        check(rmsprop(**options), device, scalars=2)
        check(rmsprop(**options, state_dtype="bfloat16"), device, scalars=3)
    # Which keeps a count and the momentum of its own.
    injected = optax.inject_hyperparams(rmsprop)(0.1, momentum=schedule)
    check(injected, device, scalars=5)
    # A decay that does not depend on the learning rate, with a count of its own.
    decay = optax.add_decayed_weights(lambda count: -schedule(count))
    check(optax.chain(rmsprop(0.1, momentum=0.9), decay), device, scalars=3)


@each_device
def test_narrow_parameters(device):
    for dtype in ("float32", "bfloat16"):
        tx = rmsprop(0.1, momentum=0.9, state_dtype=dtype)
        rounded = optax.chain(tx, stochastic_rounding())
        with jax.numpy_dtype_promotion("standard"):  # for optax.apply_updates
            check(tx, device, dtype="bfloat16", scalars=2)
            check(master_weights(tx), device, dtype="bfloat16", scalars=2)
            check(rounded, device, dtype="bfloat16", scalars=4)


@pytest.mark.parametrize("device", ["v5e:2x4", "h100:1x1x1"])
def test_complex_leaves(device):
    """On v5p and v6e XLA holds parts of them in memory, on v5p with optax.sgd too."""
    for options in RULES.values():
        check(rmsprop(0.1, weight_decay=0.1, **options), device, dtype="complex64")


@pytest.mark.parametrize("name", dialects.__all__)
@pytest.mark.parametrize("device", ["v5e:2x4", "h100:1x1x1"])
def test_every_dialect(device, name):
    check(getattr(dialects, name)(0.1), device)


@each_device
def test_caution_takes_a_second_pass(device):
    """The share of a leaf is known once all of it has been read: two words more."""
    tx = dialects.timm(0.1, momentum=0.9, caution=True)
    check(tx, device, shape=(8192, 8192), scalars=3, passes=2)
