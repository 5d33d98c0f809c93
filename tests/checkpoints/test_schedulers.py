"""The scheduler beside the optimizer in a checkpoint; test_torch_live.py has files."""

import warnings

import jax
import numpy as np
import pytest
from support.state_dicts import GROUP, made_up
from support.untyped import checkpoints, from_torch

from rmsprop_jax import schedules

from_timm = checkpoints.from_timm


def optimizer(groups=1):
    """An optimizer after 7 updates, with a scheduler's trace in its groups."""
    state_dict = made_up([(3,)] * groups)
    state_dict["param_groups"] = [
        {**GROUP, "initial_lr": 0.5, "params": [g], "param_names": [f"p{g}"]}
        for g in range(groups)
    ]
    return state_dict


def step_lr(last_epoch, rates=(0.5,)):
    state_dict = {"step_size": 5, "gamma": 0.5, "base_lrs": [*rates]}
    last = [rate * 0.5 ** (last_epoch // 5) for rate in rates]
    return state_dict | {"last_epoch": last_epoch, "_last_lr": last}


def test_the_scheduler_is_resumed_wherever_it_is():
    for beside in (
        {"lr_schedulers": [step_lr(7)]},
        {"scheduler": step_lr(7)},
        {"lr_scheduler": step_lr(7)},
        {"training": {"state": ({"any name": step_lr(7)},)}},
    ):
        tx, state = from_torch(
            {"optimizer": optimizer()} | beside, learning_rate="checkpoint"
        )
        same, expected = from_torch(
            optimizer(), learning_rate=schedules.step_lr(0.5, 5, 0.5)
        )
        gradients = {"p0": np.ones(3, np.float32)}
        for _ in range(5):
            updates, state = tx.update(gradients, state)
            theirs, expected = same.update(gradients, expected)
            np.testing.assert_array_equal(updates["p0"], theirs["p0"])


def test_groups_with_one_schedule_are_one():
    """Their parameters may share an array, as with one learning rate."""
    checkpoint = {"optimizer": optimizer(2)} | {"scheduler": step_lr(7, (0.5, 0.5))}
    _, state = from_torch(
        checkpoint, lambda w: {"both": np.stack([*w.values()])},
        learning_rate="checkpoint",
    )  # fmt: skip
    assert state.nu["both"].shape == (2, 3)
    checkpoint = {"optimizer": optimizer(2)} | {"scheduler": step_lr(7, (0.5, 0.25))}
    tx, state = from_torch(checkpoint, learning_rate="checkpoint")
    gradients = {"p0": np.ones(3, np.float32), "p1": np.ones(3, np.float32)}
    updates, _ = jax.jit(tx.update)(gradients, state)
    rates = [
        np.abs(updates[n]) * np.sqrt(0.9 * state_nu(state, n) + 0.1) for n in updates
    ]
    np.testing.assert_allclose(rates[0] / rates[1], 2, rtol=1e-4)


def state_nu(state, name):
    group = f"group_{name[1:]}"
    return np.asarray(state.inner_states[group].inner_state.nu[name])


ADVICE = {
    # The optimizer has made 7 updates.
    9: "'last_epoch' is 9 and the optimizer's step 7. If GradScaler skipped the "
    "difference, give offset=2.",
    1: "If it steps once per epoch, give updates_per_step=7 if the checkpoint was "
    "saved at the end of an epoch, otherwise a value from 4 to 6; if it was made "
    "later, give offset=-6.",
    2: "give updates_per_step=3; if it was made later",
    3: "give updates_per_step=2; if it was made later",
    0: "give updates_per_step, more than 7; if it was made later, give offset=-7.",
}


@pytest.mark.parametrize("last_epoch", ADVICE)
def test_the_division_is_done_for_the_user(last_epoch):
    """The error has it, and so has the warning of who gives no learning rate."""
    checkpoint = {"optimizer": optimizer()} | {"scheduler": step_lr(last_epoch)}
    with pytest.raises(
        ValueError, match="updates_per_step and offset must be"
    ) as found:
        from_torch(checkpoint, learning_rate="checkpoint")
    assert ADVICE[last_epoch] in str(found.value)
    with pytest.warns(
        UserWarning, match="To resume its StepLR, give learning_r"
    ) as warned:
        from_torch(checkpoint)
    assert ADVICE[last_epoch] in str(warned[0].message)


def test_the_advice_is_right():
    """Every step count and last_epoch, by the arguments that are named."""
    for last_epoch, given in {
        9: {"offset": 2},
        1: {"updates_per_step": 7},
        2: {"updates_per_step": 3},
        3: {"updates_per_step": 2},
        0: {"updates_per_step": 8},
    }.items():
        checkpoint = {"optimizer": optimizer()} | {"scheduler": step_lr(last_epoch)}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, state = from_torch(checkpoint, learning_rate="checkpoint", **given)
        assert state.count == 7


def test_the_advice_if_the_scheduler_steps_with_every_update():
    checkpoint = {"optimizer": optimizer()} | {"scheduler": step_lr(7)}
    for given in ({"updates_per_step": 5}, {"offset": 3}):
        with pytest.raises(ValueError, match="with every update: give neither"):
            from_torch(checkpoint, learning_rate="checkpoint", **given)


def test_a_pair_of_schedules_is_unpacked():
    pair = schedules.from_torch(step_lr(7))
    with pytest.raises(TypeError, match="Unpack it: learning_rate, momentum ="):
        from_torch(optimizer(), learning_rate=pair)


def test_several_updates_per_step_fit():
    """1,234 updates in 12 epochs: of 95 to 102 updates each."""
    state_dict = optimizer()
    state_dict["state"][0]["step"] = 1234
    checkpoint = {"optimizer": state_dict} | {"scheduler": step_lr(12)}
    with pytest.raises(ValueError, match="updates_per_step, from 95 to 102; if it was"):
        from_torch(checkpoint, learning_rate="checkpoint")
    for per_step in (95, 102):
        from_torch(checkpoint, learning_rate="checkpoint", updates_per_step=per_step)
    for per_step in (94, 103):
        with pytest.raises(
            ValueError, match="updates_per_step and offset must be such"
        ):
            from_torch(
                checkpoint, learning_rate="checkpoint", updates_per_step=per_step
            )


def test_a_number_near_the_quotient_is_warned_of():
    """1,200 updates in 12 epochs are 100 each, unless it was saved in the middle."""
    state_dict = optimizer()
    state_dict["state"][0]["step"] = 1200
    checkpoint = {"optimizer": state_dict} | {"scheduler": step_lr(12)}
    given = {"learning_rate": "checkpoint"}
    from_torch(checkpoint, **given, updates_per_step=100)
    sentence = "was saved 24 updates after .* updates_per_step must be 100"
    with pytest.warns(UserWarning, match=sentence):
        from_torch(checkpoint, **given, updates_per_step=98)
    with pytest.warns(UserWarning, match="must be 101, because then 1212 updates"):
        from_torch(checkpoint, **given, updates_per_step=100, offset=12)
    from_torch(checkpoint, **given, updates_per_step=98, offset=1)
    with pytest.raises(ValueError, match=r"=100 if .* from 93 to 99; if it was"):
        from_torch(checkpoint, **given, updates_per_step=101)


def test_timm_s_optimizer_with_a_scheduler_of_torch():
    """It has the same arguments."""
    state_dict = optimizer()
    state_dict["param_groups"][0] |= {"decoupled_decay": False, "lr_in_momentum": True}
    checkpoint = {"optimizer": state_dict} | {"scheduler": step_lr(2)}
    given = {"learning_rate": "checkpoint"}
    with pytest.raises(ValueError, match="give updates_per_step=3; if it was made"):
        from_timm(checkpoint, **given)
    tx, state = from_timm(checkpoint, **given, updates_per_step=3)
    expected, same = from_timm(
        state_dict, learning_rate=lambda n: schedules.step_lr(0.5, 5, 0.5)(n // 3)
    )
    gradients = {"p0": np.ones(3, np.float32)}
    for _ in range(9):  # the last at 15, where the scheduler makes its 5th step
        updates, state = tx.update(gradients, state)
        theirs, same = expected.update(gradients, same)
        np.testing.assert_array_equal(updates["p0"], theirs["p0"])


REFUSED = {
    "no scheduler": ({}, {}, "holds no state_dict of a scheduler"),
    "several": (
        {"lr_schedulers": [step_lr(7), step_lr(6)]},
        {},
        r"holds several schedulers, \['lr_schedulers'\]\[0\], \['lr_schedulers'\]\[1\]",
    ),
    "another number of groups": (
        {"scheduler": step_lr(7, (0.5, 0.5))},
        {},
        "must have a base learning rate for each of the optimizer's 1 groups",
    ),
    "unknown": (
        {"scheduler": {**step_lr(7), "warmup": 5}},
        {},
        r"\['scheduler'\] of checkpoint must have the keys of one of torch's",
    ),
    "another word": (
        {},
        {"learning_rate": "file"},
        r"learning_rate must be a number, a schedule, .* or .checkpoint.",
    ),
    "updates of nothing": (
        {"scheduler": step_lr(7)},
        {"learning_rate": 0.1, "updates_per_step": 2},
        "learning_rate must be 'checkpoint' with updates_per_step or offset",
    ),
    "no updates": (
        {"scheduler": step_lr(7)},
        {"updates_per_step": 0},
        "updates_per_step must be an integer from 1",
    ),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_can_t_be_resumed_is_refused(problem):
    beside, given, sentence = REFUSED[problem]
    with pytest.raises(ValueError, match=sentence):
        from_torch(
            {"optimizer": optimizer()} | beside,
            **({"learning_rate": "checkpoint"} | given),
        )


def test_a_warning_says_why_a_scheduler_can_t_be_resumed():
    checkpoint = {"optimizer": optimizer()} | {"scheduler": {**step_lr(7), "warmup": 5}}
    with pytest.warns(
        UserWarning, match="has a scheduler that can't be resumed: .'sched"
    ):
        from_torch(checkpoint)
    with pytest.warns(UserWarning, match=r"or a number to keep it constant\.$"):
        from_torch(optimizer())


def test_a_momentum_that_is_given_stays():
    """The scheduler's is resumed only without."""
    group = {"initial_lr": 0.02, "max_lr": 0.5, "min_lr": 2e-6}
    group |= {"max_momentum": 0.95, "base_momentum": 0.85, "momentum": 0.9}
    state_dict = made_up([(3,)], momentum=0.9)
    state_dict["param_groups"][0] |= {**group, "param_names": ["p0"]}
    phases = [{"end_step": 29.0}, {"end_step": 99}]
    scheduler = {"total_steps": 100, "_schedule_phases": phases}
    scheduler |= {"_anneal_func_type": "linear", "cycle_momentum": True}
    scheduler |= {"base_lrs": [0.02], "last_epoch": 7}
    last = float(schedules.one_cycle_lr(0.5, 100, anneal_strategy="linear")[0](7))
    checkpoint = {"optimizer": state_dict, "s": scheduler | {"_last_lr": [last]}}
    gradients = {"p0": np.ones(3, np.float32)}

    def first(**given):
        tx, state = from_torch(checkpoint, learning_rate="checkpoint", **given)
        return np.asarray(tx.update(gradients, state)[0]["p0"])

    cycle = schedules.one_cycle_lr(0.5, 100, anneal_strategy="linear")
    assert cycle.momentum is not None
    at_7 = float(cycle.momentum(7))
    np.testing.assert_allclose(first(), first(momentum=at_7), rtol=1e-6)
    assert np.abs(first() - first(momentum=0.5)).max() > 1e-3
