"""timm's schedulers beside the real ones: float64 to 1e-12, float32 to 1e-6."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from recorded.frameworks import with_timm
from support.schedulers import crossed

from rmsprop_jax import schedules

pytestmark = pytest.mark.live
FUNCTIONS = {
    "CosineLRScheduler": "cosine_lr_scheduler",
    "StepLRScheduler": "step_lr_scheduler",
}
WARM_UP = {"warmup_t": 7, "warmup_lr_init": 1e-4}
ARGUMENTS = {
    "CosineLRScheduler": [
        *crossed(
            t_initial=[5, 12],
            lr_min=[0.001],
            cycle_mul=[1.0, 1.5, 3.0],
            cycle_decay=[0.5],
            cycle_limit=[1, 4],
        ),
        # Where the logarithm is rounded down: log(3**5)/log(3) is less than 5.
        {"t_initial": 1, "cycle_mul": 3.0, "cycle_limit": 9},
        {"t_initial": 30, "k_decay": 2.0, **WARM_UP},
        {"t_initial": 30, "warmup_prefix": True, **WARM_UP},
        {"t_initial": 9, "cycle_limit": 3, "warmup_prefix": True, **WARM_UP},
    ],
    "StepLRScheduler": [
        *crossed(decay_t=[1, 2.4, 10], decay_rate=[0.97, 0.5]),
        {"decay_t": 2.4, "decay_rate": 0.9, **WARM_UP},
        {"decay_t": 3, "decay_rate": 0.9, "warmup_prefix": False, **WARM_UP},
    ],
}
CASES = [(name, arguments) for name, of in ARGUMENTS.items() for arguments in of]


@pytest.fixture(scope="module")
def timm():
    """The module of the real schedulers."""
    return with_timm("timm.scheduler")


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_every_scheduler_is_timm_s(timm, request, name, arguments):
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = getattr(timm, name)(optimizer, **arguments)
    expected = [optimizer.param_groups[0]["lr"]]
    for epoch in range(1, 300):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    schedule = getattr(schedules, FUNCTIONS[name])(0.1, **arguments)
    # Not compiled, which would take longer than all of it.
    found = np.asarray(schedule(jnp.arange(300, dtype=jnp.int32)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    request.getfixturevalue("x64")
    found = np.asarray(schedule(jnp.arange(300, dtype=jnp.int32)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_timm_s(timm, name):
    """Without the noise, and where the optimizer and its groups are named."""
    theirs = [*inspect.signature(getattr(timm, name)).parameters.values()]
    ours = [*inspect.signature(getattr(schedules, FUNCTIONS[name])).parameters.values()]
    assert ours.pop(0).name == "learning_rate"
    left_out = ("optimizer", "t_in_epochs", "initialize")
    assert [(p.name, p.default) for p in ours] == [
        (p.name, p.default)
        for p in theirs
        if p.name not in left_out and not p.name.startswith("noise")
    ]
