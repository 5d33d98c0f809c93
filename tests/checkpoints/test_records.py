"""The part that all formats share, with the records of a made-up one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.comparisons import assert_same

from rmsprop_jax import dialects
from rmsprop_jax.checkpoints import _records
from rmsprop_jax.checkpoints._records import Group, Record, Wording, to_records

# optax types states as any trees of arrays; here they are what they are.
from_records: Any = _records.from_records

WORDING = Wording(
    keys={"nu": "velocity", "mu": "momentum", "grad_mean": "average_gradient"},
    to_drop="delete their blocks.",
    to_join="Compile one optimizer.",
)


def array(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def plain():
    return Group(dialects.keras(0.1), {"nu"})


def with_all():
    return Group(
        dialects.keras(0.1, momentum=0.9, centered=True), {"nu", "mu", "grad_mean"}
    )


def test_one_group_goes_on_as_its_own_transformation():
    group = Group(dialects.keras(0.1, momentum=0.9), {"nu", "mu"})
    record = Record("w", 0, 5, array(2, 3) ** 2, array(2, 3))
    tx, state = from_records(
        [record], [group], lambda weights: {"kernel": weights["w"].T}, WORDING
    )
    assert tx is group.tx
    assert state.count == 5
    expected = tx.init({"kernel": jnp.zeros((3, 2))})
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    np.testing.assert_array_equal(state.nu["kernel"], record.nu.T)
    assert record.mu is not None
    np.testing.assert_array_equal(state.mu["kernel"], record.mu.T)


@pytest.mark.parametrize("groups", [[plain(), with_all()], [with_all(), plain()]])
def test_several_groups_there_and_back(groups):
    """Each keeps what its rule keeps; the count is the most."""
    records = []
    for g, group in enumerate(groups):
        moments = {moment: array(2, 3) + g for moment in group.keeps}
        records.append(Record("ab"[g], g, 7 - g, **moments))
    tx, state = from_records(records, groups, None, WORDING)
    expected = tx.init({"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))})
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    back = to_records(state, None, {"a": 0, "b": 1})
    assert_same(back, [record._replace(steps=7) for record in records])


def test_moments_that_a_parameter_has_not_yet_are_zeros():
    group = Group(dialects.keras(0.1, momentum=0.9), {"nu", "mu"})
    records = [Record("a", 0, 1, array(3)), Record("b", 0, 1, array(3), array(3))]
    _, state = from_records(records, [group], None, WORDING)
    assert not state.mu["a"].any()
    assert state.mu["b"].all()


@pytest.mark.parametrize(
    ("to_params", "says"),
    [
        (lambda w: {"a": w["a"]}, "out .some of. 'b', .* go, delete their blocks.$"),
        (
            lambda w: {"ab": np.stack([w["a"], w["b"]])},
            r"'a', 'b', of the groups \[0, 1\].*Compile one optimizer.$",
        ),
        (
            lambda w: {k: x if x.min() < 0 else x[:2] for k, x in w.items()},
            "leaf .'a'. of 'velocity' it made the shape",
        ),
    ],
)
def test_errors_speak_the_format_s_words(to_params, says):
    records = [Record(name, g, 1, array(3) ** 2) for g, name in enumerate("ab")]
    with pytest.raises(ValueError, match=says):
        from_records(records, [plain(), plain()], to_params, WORDING)
