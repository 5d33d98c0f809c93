"""State_dicts of schedulers as torch writes them, without torch, and as it does not."""

import functools
import json
import math
import pathlib
import random
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsprop_jax import schedules

from_torch: Any = schedules.from_torch
plateau_from_torch: Any = schedules.plateau_from_torch
COMMON = {"_step_count": 46, "_is_initial": False, "_get_lr_called_within_step": False}


def step_lr(**changes):
    made = {"step_size": 30, "gamma": 0.1, "base_lrs": [0.5], "last_epoch": 45}
    return COMMON | made | {"_last_lr": [0.05]} | changes


def cosine(**changes):
    made = {"T_max": 8, "eta_min": 0.0, "base_lrs": [0.5], "last_epoch": 8}
    return COMMON | made | {"_last_lr": [0.0]} | changes


def linear(**changes):
    made = {"start_factor": 0.5, "end_factor": 1.0, "total_iters": 4}
    made |= {"base_lrs": [0.5], "last_epoch": 4, "_last_lr": [0.5]}
    return COMMON | made | changes


def sequential(**changes):
    parts = [linear(), cosine(last_epoch=4, _last_lr=[0.25])]
    made = {"_schedulers": parts, "_milestones": [4], "last_epoch": 8}
    return made | {"_last_lr": [0.25]} | changes


def cyclic(**changes):
    made = {"max_lrs": [0.5], "total_size": 40.0, "step_ratio": 0.5}
    made |= {"mode": "triangular", "gamma": 1.0, "scale_mode": "cycle"}
    made |= {"cycle_momentum": True, "use_beta1": False, "_scale_fn_custom": None}
    made |= {"base_momentums": [0.8], "max_momentums": [0.9]}
    made |= {"base_lrs": [0.1], "last_epoch": 20, "_last_lr": [0.5]}
    return COMMON | made | changes


def one_cycle(**changes):
    phases = [{"end_step": 29.0}, {"end_step": 99}]
    made = {"total_steps": 100, "_schedule_phases": phases, "_anneal_func_type": "cos"}
    made |= {"cycle_momentum": True, "use_beta1": False}
    made |= {"base_lrs": [0.02], "last_epoch": 29, "_last_lr": [0.5]}
    return COMMON | made | changes


def plateau(**changes):
    made = {"factor": 0.1, "patience": 3, "cooldown": 0, "eps": 1e-8, "mode": "min"}
    made |= {"threshold": 0.1, "threshold_mode": "abs", "min_lrs": [0]}
    made |= {"best": 0.5, "num_bad_epochs": 2, "cooldown_counter": 0}
    return made | {"last_epoch": 3, "_last_lr": [0.5]} | changes


GROUP = {"initial_lr": 0.02, "max_lr": 0.5, "min_lr": 2e-6}
GROUP |= {"max_momentum": 0.95, "base_momentum": 0.85, "swa_lr": 0.05}


def test_updates_per_step_and_offset():
    """(step + offset) // updates_per_step, at both ends of int32 too."""
    plain, _ = from_torch(step_lr())
    shifted, _ = from_torch(step_lr(), updates_per_step=4, offset=3)
    late, _ = from_torch(step_lr(), offset=-7)
    for count in (0, 1, 4, 116, 117, 118, 2**31 - 1):
        assert shifted(count) == plain(min(count + 3, 2**31 - 1) // 4)
        assert late(count) == plain(max(count - 7, 0))
    assert shifted(116) != shifted(117)
    last, _ = from_torch(step_lr(), offset=2**31 - 1)
    assert last(2**31 - 1) == plain(2**31 - 1)
    assert repr(shifted) == (
        "lambda count: step_lr(0.5, step_size=30, gamma=0.1)((count + 3) // 4)"
    )
    with pytest.raises(ValueError, match="updates_per_step must be an integer from 1"):
        from_torch(step_lr(), updates_per_step=0)
    with pytest.raises(ValueError, match="offset must be an integer from -"):
        from_torch(step_lr(), offset=0.5)


def test_numbers_of_every_kind():
    """Numbers may be tensors and arrays, as on a device, or in a file."""
    state_dict = step_lr(
        base_lrs=[np.float32(0.5)], gamma=np.array(0.1), _last_lr=(np.array([0.05]),)
    )
    schedule, momentum = from_torch(state_dict)
    assert momentum is None
    np.testing.assert_allclose([schedule(29), schedule(30)], [0.5, 0.05], rtol=1e-6)


def test_groups_of_one_learning_rate_share_a_schedule():
    """So that their parameters may share an array."""
    state_dict = step_lr(base_lrs=[0.5, 0.2, 0.5], _last_lr=[0.05, 0.02, 0.05])
    one, two, three = from_torch(state_dict, updates_per_step=2).learning_rate
    assert one is three
    assert one(0) == 0.5
    np.testing.assert_allclose(two(0), 0.2, rtol=1e-6)


def test_groups_are_always_a_list():
    """Of one group too, so that a type checker knows what they are."""
    state_dict = step_lr(base_lrs=[0.5, 0.2], _last_lr=[0.05, 0.02])
    for one in (step_lr(), state_dict):
        found = from_torch(one)
        rates = [group.learning_rate for group in found.groups]
        assert rates == (found.learning_rate if len(rates) > 1 else [found[0]])
        assert [group.momentum for group in found.groups] == [None] * len(rates)
    ((rate, momentum),) = from_torch(one_cycle(), param_groups=[GROUP]).groups
    assert (rate(0), momentum(0)) == (jnp.float32(0.02), jnp.float32(0.95))


def test_milestones_of_a_counter_and_of_a_list():
    for milestones in ({30: 2, 50: 1}, [30, 30, 50]):
        state_dict = step_lr(milestones=milestones, _last_lr=[0.005])
        del state_dict["step_size"]
        schedule, _ = from_torch(state_dict)
        np.testing.assert_allclose(schedule(50), 0.0005, rtol=1e-5)


def test_one_cycle_from_its_group():
    learning_rate, momentum = from_torch(one_cycle(), param_groups=[GROUP])
    expected = schedules.one_cycle_lr(0.5, 100)
    assert expected.momentum is not None
    for count in (0, 10, 29, 60, 99, 100):
        found = [learning_rate(count), momentum(count)]
        by_name = [expected.learning_rate(count), expected.momentum(count)]
        np.testing.assert_allclose(found, by_name, rtol=1e-5, atol=1e-7)


REFUSED = {
    "another class": (step_lr(warmup=3), "must have the keys of one of torch's"),
    "no keys": ({}, "must have the keys of one of torch's"),
    "odd keys": ({3: 4, None: 5}, "must have the keys of one of torch's"),
    "missing": ({"step_size": 3, "gamma": 0.1}, "a StepLR, must have a list of"),
    "no groups": (step_lr(base_lrs=[]), "a list of numbers as its 'base_lrs'"),
    "no number": (step_lr(gamma="0.1"), "a StepLR: gamma must be a number, but it was"),
    "NaN": (step_lr(gamma=math.nan), "gamma must be a finite number, not negative"),
    "negative": (step_lr(base_lrs=[-1.0]), "learning_rate must be a finite number"),
    "zero": (step_lr(step_size=0), "step_size must be an integer from 1 to 2147483647"),
    "huge": (step_lr(step_size=10**400), "step_size must be a finite number, but"),
    "boolean": (step_lr(step_size=True), "step_size must be a number"),
    "no count": (step_lr(last_epoch=None), "must have an integer from 0 to 2147483647"),
    "a part of a count": (step_lr(last_epoch=1.5), "'last_epoch', but it was 1.5"),
    "before the start": (step_lr(last_epoch=-1), "must have an integer from 0 to"),
    "a last learning rate of others": (step_lr(_last_lr=[0.5]), "is 0.05 in group 0"),
    "a NaN as the last": (step_lr(_last_lr=[math.nan]), "is 0.05 in group 0 after"),
    "last ones of more groups": (step_lr(_last_lr=[0.05] * 2), "a list of 1 numbers"),
    "last ones of text": (step_lr(_last_lr=["0.05"]), "numbers as its '_last_lr'"),
    "many milestones": (
        {**{k: v for k, v in step_lr().items() if k != "step_size"},
         "milestones": {3: 10**12}},
        "at most 100000 'milestones'",
    ),
    "nothing nested": (sequential(_schedulers=[]), "must have a list of dict"),
    "nested text": (sequential(_schedulers="ab"), "must have a list of dict"),
    "no milestones": (sequential(_milestones=None), "numbers as its '_milest"),
    "too few milestones": (sequential(_milestones=[]), "milestones must be one"),
    "descending": (
        sequential(_schedulers=[linear()] * 3, _milestones=[5, 3]),
        "milestones must ascend",
    ),
    "groups that differ": (
        sequential(_schedulers=[linear(), cosine(base_lrs=[0.5, 0.2])]),
        "the same number of base learning rates in each",
    ),
    "a chain of different steps": (
        {"_schedulers": [linear(), cosine()], "_last_lr": [0.0]},
        "the same 'last_epoch' in each",
    ),
    "a chain that can't be": (
        {"_schedulers": [cosine(eta_min=0.1, last_epoch=4), linear(total_iters=10**6)],
         "_last_lr": [0.1]},
        "a ChainedScheduler: schedulers must need at most 100000 learning",
    ),
    "a scale_fn": (cyclic(_scale_fn_custom={}), "with a scale_fn, which torch"),
    "a beta": (cyclic(use_beta1=True), "moves 'betas', which the RMSprop"),
    "half steps": (cyclic(total_size=5.0), "step_size_up must be an integer from 1"),
    "a mode": (cyclic(mode="square"), "a CyclicLR: mode must be 'triangular'"),
    "infinite": (cyclic(total_size=math.inf), "must have finite numbers, not negative"),
    "momentum or not": (cyclic(cycle_momentum="yes"), "as its 'cycle_momentum', but"),
    "no groups given": (one_cycle(), "param_groups must be given, because"),
    "a plateau": (plateau(), r"schedules.plateau_from_torch\(state_dict\), which resu"),
    "lambdas": ({**step_lr(), "lr_lambdas": [None]}, "must have the keys of one of"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*CyclicLR")
@pytest.mark.parametrize("problem", REFUSED)
def test_what_can_t_be_is_refused(problem):
    state_dict, sentence = REFUSED[problem]
    with pytest.raises(ValueError, match=sentence):
        from_torch(state_dict)


def before_one_cycle(**changes):
    return sequential(_schedulers=[linear(**changes), one_cycle()])


@pytest.mark.parametrize(
    ("state_dict", "groups", "sentence"),
    [
        (before_one_cycle(), [GROUP, GROUP], "must have 1 groups, .* but it had 2"),
        (before_one_cycle(), [], "must have 1 groups, .* but it had 0"),
        (before_one_cycle(), [{}], "a OneCycleLR keeps it"),
        (before_one_cycle(), [GROUP | {"initial_lr": "x"}], "as its 'base_lrs', but"),
        (before_one_cycle(base_lrs=5), [GROUP], "a list of numbers as its 'base_lrs'"),
        (
            before_one_cycle() | {"_milestones": [np.zeros(3)]},
            [GROUP],
            "milestones must be a number",
        ),
    ],
)
def test_one_cycle_after_another_is_refused(state_dict, groups, sentence):
    with pytest.raises(ValueError, match=sentence):
        from_torch(state_dict, param_groups=groups)


@pytest.mark.parametrize(
    ("state_dict", "sentence"),
    [
        (step_lr(), "state_dict must be of a ReduceLROnPlateau, but it was not"),
        (plateau(best="low"), "must have a number as its 'best', but it was low"),
        (plateau(best=10**400), "must have a number as its 'best', but it was 1000"),
        (plateau(num_bad_epochs=-1), "num_bad_epochs must be an integer from 0"),
        (plateau(cooldown_counter=0.5), "cooldown_counter must be an integer from 0"),
        (plateau(min_lrs=[]), "must have a list of numbers as its 'min_lrs'"),
        (plateau(factor=1.0), "factor must be more than 0 and less than 1"),
    ],
)
def test_a_plateau_that_can_t_be_is_refused(state_dict, sentence):
    with pytest.raises(ValueError, match=sentence):
        schedules.plateau_from_torch(state_dict)
    with pytest.raises(TypeError, match="state_dict must be a dictionary, such as"):
        plateau_from_torch([])


def test_lambdas_are_asked_for():
    state_dict = {"lr_lambdas": [None], "base_lrs": [0.5], "last_epoch": 2}
    state_dict |= {"_last_lr": [0.125]}
    with pytest.raises(TypeError, match=r"a schedule, such as .* one returned 0\.5"):
        from_torch(state_dict, lambdas=[lambda base: 0.5])
    whole = {"epoch": 3, "scheduler": step_lr()}
    with pytest.raises(ValueError, match="has one in 'scheduler': give that"):
        from_torch(whole)
    with pytest.raises(ValueError, match="a LambdaLR or a MultiplicativeLR, which"):
        from_torch(state_dict)

    def power(base):
        return schedules.lambda_lr(base, lambda t: 0.5 ** t.astype(jnp.float32))

    assert from_torch(state_dict, lambdas=[power]).learning_rate(3) == 0.0625
    with pytest.raises(ValueError, match="lambdas must have one function for each"):
        from_torch(state_dict, lambdas=[power] * 2)
    with pytest.raises(TypeError, match="lambdas must be functions from a base"):
        from_torch(state_dict, lambdas=[0.5])
    with pytest.raises(ValueError, match="Something else set the learning rate too"):
        from_torch(state_dict, lambdas=[lambda base: schedules.step_lr(base, 30)])


def test_what_is_not_a_dictionary_is_refused():
    with pytest.raises(TypeError, match="state_dict must be a dictionary, such as"):
        from_torch([step_lr()])


@pytest.mark.parametrize(
    "read", [from_torch, functools.partial(schedules.to_torch, step_count=9)]
)
def test_the_groups_are_not_the_state_dict(read):
    with pytest.raises(TypeError, match=r"was one dictionary.*\['param_groups'\]"):
        read(step_lr(), param_groups={"state": {}, "param_groups": []})


@pytest.mark.parametrize("path", ["run.pt", pathlib.Path("run.pt")])
@pytest.mark.parametrize("read", [from_torch, plateau_from_torch])
def test_a_path_is_refused_with_what_reads_it(read, path):
    with pytest.raises(TypeError, match=r"path 'run\.pt'.* checkpoints\.read\(path\)"):
        read(path)


@pytest.mark.parametrize("depth", [9, 2000])
def test_deep_ones_are_refused(depth):
    state_dict = linear()
    for _ in range(depth):
        state_dict = {"_schedulers": [state_dict], "_last_lr": [0.5]}
    with pytest.raises(ValueError, match="nested at most 8 deep, but it had more"):
        from_torch(state_dict)
    state_dict = {"_schedulers": [], "_last_lr": [0.5]}
    state_dict["_schedulers"].append(state_dict)
    with pytest.raises(ValueError, match="nested at most 8 deep, but it had more"):
        from_torch(state_dict)
    many = {"_schedulers": [linear()] * 1000, "_last_lr": [0.5]}
    with pytest.raises(ValueError, match="at most 100 schedulers"):
        from_torch(many)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([10**400, 2**31, -(2**31), np.array([1, 2]), np.array(0.5),
                       np.complex64(1j), b"", {}, [], object()]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
FORMS = [step_lr, cosine, linear, sequential, cyclic, one_cycle]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(FORMS),
    values=st.lists(anything, max_size=3),
    pick=st.randoms(),
)
def test_a_stranger_s_values_are_refused_by_a_sentence(
    form, values, pick: random.Random
):
    """Whatever stands under a key, it is read or a ValueError."""
    state_dict = form()
    where: Any = state_dict
    if form is sequential and pick.random() < 0.5:
        where = pick.choice(state_dict["_schedulers"])
    for value in values:
        where[pick.choice(sorted(where))] = value
    groups: list[Any] = [dict(GROUP)]
    if values and pick.random() < 0.3:
        groups[0][pick.choice(sorted(GROUP))] = values[0]
    refusal = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from_torch(state_dict, param_groups=groups)
        except ValueError as error:
            refusal = str(error)
    assert refusal.endswith(".") or not refusal


def test_json_keeps_what_is_needed():
    """The metadata of a safetensors file is such JSON."""
    state_dict = json.loads(json.dumps(sequential()))
    assert from_torch(state_dict).learning_rate(4) == 0.5
