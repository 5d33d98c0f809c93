"""What is read of a recording: files, lists of trees, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmsprop_jax import dialects, identify
from rmsprop_jax._identify import _evaluate_learning_rate
from rmsprop_jax._identify.recording import make_recording
from rmsprop_jax._identify.run import read_run


@functools.cache
def make_run():
    """A run of two leaves, as lists of dictionaries."""
    rng = np.random.default_rng(0)
    tx = dialects.torch(0.01, 0.9, momentum=0.5)
    trees: list[dict[str, Any]] = [{"b": jnp.zeros(3), "w": jnp.ones((3, 4))}]
    state, gradients = tx.init(trees[0]), []
    for _ in range(12):
        g = {n: jnp.asarray(rng.normal(size=p.shape), "f") for n, p in trees[0].items()}
        updates: Any
        updates, state = tx.update(g, state, trees[-1])
        trees.append({name: p + updates[name] for name, p in trees[-1].items()})
        gradients.append(g)
    return trees, gradients


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def test_a_list_of_trees_is_the_same_as_a_tree_of_arrays():
    trees, gradients = make_run()
    one = read_run(trees, gradients)
    other = read_run(stack(trees), stack(gradients))
    assert one.shapes == other.shapes == [(3,), (3, 4)]
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, one.gradients, other.gradients)


def test_files_of_arrays_and_their_nameless_bfloat16(tmp_path):
    trees, gradients = make_run()
    runs = [
        {name: leaf.astype(jnp.bfloat16) for name, leaf in stack(x).items()}
        for x in (trees, gradients)
    ]
    for name, run in zip(("params", "gradients"), runs, strict=True):
        np.savez(tmp_path / f"{name}.npz", **run)
    with (
        np.load(tmp_path / "params.npz") as params,
        np.load(tmp_path / "gradients.npz") as g,
    ):
        assert params["w"].dtype.str == "|V2"
        read = read_run(params, g)
    direct = read_run(*runs)
    jax.tree.map(np.testing.assert_array_equal, read.params, direct.params)
    jax.tree.map(np.testing.assert_array_equal, read.gradients, direct.gradients)


def test_other_nameless_dtypes_are_refused_with_what_to_do():
    params = np.cumsum(np.ones((7, 3)), axis=0).astype(jnp.float8_e4m3fn).view("V1")
    with pytest.raises(TypeError, match=r"\.view\(ml_dtypes\.float8_e4m3fn\)"):
        identify({"w": params}, {"w": np.ones((6, 3))})


def test_a_list_whose_trees_differ_is_refused():
    trees, gradients = make_run()
    with pytest.raises(ValueError, match=r"in tree 3 .* leaf \['b'\] is missing"):
        identify([*trees[:3], {"w": trees[3]["w"]}, *trees[4:]], gradients)


def refused(sentence, params, gradients, **options):
    with pytest.raises(ValueError, match=sentence):
        identify(params, gradients, **options)


def test_bad_input_is_refused_in_sentences():
    params, gradients = np.cumsum(np.ones((7, 3)), axis=0), np.ones((6, 3))

    def changed(x, value):
        x = x.copy()
        x[2, 1] = value
        return x

    refused("one more than", {"w": params[:-1]}, {"w": gradients})
    refused(r"leaf \['b'\] is unexpected", {"w": params}, {"b": gradients})
    refused(r"\['w'\] must have shape \(6, 3\)", {"w": params}, {"w": gradients[:, :2]})
    refused("nan at step 2", {"w": params}, {"w": changed(gradients, np.nan)})
    refused("inf in set 2", {"w": changed(params, np.inf)}, {"w": gradients})
    refused("params must change", {"w": 0 * params}, {"w": gradients})
    refused("at least 4 steps", {"w": params[:4]}, {"w": gradients[:3]})
    refused("floating-point leaves", {}, {})
    refused("count must be", {"w": params}, {"w": gradients}, count=-1)
    with pytest.raises(TypeError, match=r"count must be .* but it was 20\.0"):
        identify({"w": params}, {"w": gradients}, count=20.0)  # pyright: ignore[reportArgumentType]
    refused("must be stacked", {"w": np.float32(1)}, {"w": gradients})


def test_learning_rates_of_all_steps():
    """As a list, an array or a schedule they are the same."""
    trees, gradients = make_run()
    recording = make_recording(
        read_run(trees, gradients), gradient_norms=None, max_elements=8, skips=True
    )
    rates = [0.01 * (i + 1) for i in range(12)]
    forms: list[Any] = [rates, np.array(rates), jnp.asarray(rates)]
    forms.append(lambda count: forms[1][int(count) - 3])
    for form in forms:
        found = _evaluate_learning_rate(form, recording, 3)
        np.testing.assert_allclose(found, rates, rtol=1e-6)
    np.testing.assert_array_equal(_evaluate_learning_rate(0.5, recording, 3), 0.5)
    one_for_each = r"one number per step, so shape \(12,\), but its shape was \(11,\)"
    refused(one_for_each, trees, gradients, learning_rate=rates[:-1])
    wrong: list[Any] = ["0.1", [None] * 12, np.zeros(12, complex)]
    for bad in wrong:
        with pytest.raises(TypeError, match="learning_rate must be a number, a sched"):
            identify(trees, gradients, learning_rate=bad)
