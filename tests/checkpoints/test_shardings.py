"""States and weights put onto a mesh as they are read."""

import functools
import gc
import json
import os
import threading
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from recorded import runs
from recorded.record_runs import FILES, PADDLE
from support import keras_files
from support.comparisons import assert_same
from support.continued import continued, far
from support.distributed import extract
from support.untyped import checkpoints as functions

from rmsprop_jax import RMSPropState
from rmsprop_jax.checkpoints import load_weights, read
from rmsprop_jax.checkpoints._convert import placement
from rmsprop_jax.checkpoints._readers.source import Source
from rmsprop_jax.sharding import check_shardings, state_shardings


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return extract(tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("rows", "columns"))


def choose(mesh):
    """Splits what can be split: the layers have 3 and 4 columns, and 2 and 3 rows."""

    def sharding(path, shape):
        assert isinstance(path, str)
        sizes = dict(mesh.shape)
        spec = [
            next((axis for axis, size in sizes.items() if n % size == 0), None)
            for n in shape
        ]
        spec = [axis if axis not in spec[:i] else None for i, axis in enumerate(spec)]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding


def rearranged(weights):
    """Transposed, split, joined and copied leaves, as a model of Flax may have."""
    return {
        "dense": {"kernel": weights["dense.weight"].T, "bias": weights["dense.bias"]},
        "norms": np.stack([weights["norm.weight"], weights["norm.bias"]]),
        "head": [
            {"row": row, "bias": bias}
            for row, bias in zip(
                weights["head.weight"], np.split(weights["head.bias"], 2), strict=True
            )
        ],
        "reversed": weights["dense.weight"][::-1, ::2],
    }


def without_groups(weights):
    """One of which no leaf is of two groups."""
    return {
        "kernels": [weights["dense.weight"].T, jnp.asarray(weights["head.weight"])],
        "vectors": {n: weights[n] for n in runs.SHAPES if len(runs.SHAPES[n]) < 2},
    }


def keras_case(run, ending):
    """A run of Keras or TensorFlow."""
    framework, name = run.split("/")

    def resume(files, **more):
        of_run = json.loads((files / framework / "info.json").read_text())["runs"][name]
        folder = files / framework
        return keras_files.read(framework, folder, name, of_run, ending, **more)

    return resume


KERAS = {
    f"{run}{ending}": keras_case(run, ending)
    for run, ending in [
        ("keras_jax/momentum-centered", ".keras"),
        ("keras_jax/momentum-centered", ".weights.h5"),
        ("keras_jax/all", ".h5"),  # gradients are being accumulated
        ("tf_keras/momentum-centered-decayed", ".h5"),
        ("keras_tensorflow/all", ".index"),
        ("tensorflow/momentum-centered", ".index"),
    ]
}


def cases(fsdp):
    torch = FILES / "torch.pt"
    return {
        "torch": lambda **more: functions.from_torch(torch, **more),
        "rearranged": lambda **more: functions.from_torch(torch, rearranged, **more),
        "in memory": lambda **more: functions.from_torch(read(torch), **more),
        "legacy": lambda **more: functions.from_torch(
            FILES / "torch_legacy.pt",
            without_groups,
            names=sorted(runs.SHAPES, key=lambda name: len(runs.SHAPES[name]) < 2),
            **more,
        ),
        "fsdp": lambda **more: functions.from_torch(fsdp / "one", **more),
        "fsdp, groups": lambda **more: functions.from_torch(
            fsdp / "grid", without_groups, **more
        ),
        "timm": lambda **more: functions.from_timm(FILES / "timm.pth.tar", **more),
        "paddle": lambda **more: functions.from_paddle(
            FILES / "paddle.pdopt",
            names=FILES / "paddle.pdparams",
            learning_rate=0.1,
            **PADDLE,
            **more,
        ),
        "stable_baselines3": lambda **more: functions.from_stable_baselines3(
            FILES / "stable_baselines3.zip", **more
        ),
    }


@pytest.mark.filterwarnings("ignore:learning_rate is not given")
@pytest.mark.parametrize("name", [*cases(FILES), *KERAS])
def test_the_same_state_where_it_belongs(name, fsdp, files, mesh):
    if name in KERAS:
        resume = functools.partial(KERAS[name], files)
    else:
        resume = cases(fsdp)[name]
    _, whole = resume()
    tx, state = resume(shardings=choose(mesh))
    assert_same(jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, whole))
    for path, leaf in jax.tree.leaves_with_path(state):
        if leaf.ndim:
            assert leaf.sharding == choose(mesh)("", leaf.shape), path
        else:
            assert leaf.sharding.is_fully_replicated
            assert leaf.sharding.mesh == mesh
    if isinstance(state, RMSPropState):
        params = jax.tree.map(
            lambda nu: jax.ShapeDtypeStruct(nu.shape, nu.dtype, sharding=nu.sharding),
            state.nu,
        )
        check_shardings(state, state_shardings(tx, params))


@pytest.mark.usefixtures("x64")
def test_a_run_goes_on_over_eight_devices(fsdp, mesh):
    """An FSDP run of four processes, of two groups, with centered and momentum."""
    tx, state = functions.from_torch(fsdp / "four", shardings=choose(mesh))
    params = load_weights(fsdp / "four", shardings=choose(mesh))
    for name, p in params.items():
        assert p.sharding == choose(mesh)(name, p.shape)
    ended, _ = continued(
        {"four": (tx, state, params)},
        [{"four": g} for g in runs.gradients()[runs.BEFORE :]],
    )
    with np.load(fsdp / "four.npz") as file:
        expected = {n: file[n] for n in file if n != "made_by"}
    assert far(ended["four"], expected) <= 1e-12


def test_a_tree_of_shardings_and_one_for_all(mesh):
    path = FILES / "torch.pt"
    _, whole = functions.from_torch(path, rearranged)
    chosen = jax.tree.map(lambda nu: choose(mesh)("", nu.shape), whole.nu)
    _, state = functions.from_torch(path, rearranged, shardings=chosen)
    assert jax.tree.map(lambda nu: nu.sharding, state.nu) == chosen
    everywhere = NamedSharding(mesh, PartitionSpec())
    _, state = functions.from_torch(path, rearranged, shardings=everywhere)
    assert all(x.sharding == everywhere for x in jax.tree.leaves(state))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    weights = load_weights(path, shardings=device)
    assert all(w.devices() == {jax.devices()[3]} for w in weights.values())


@pytest.mark.parametrize("kind", ["torch", "fsdp", "bfloat16"])
def test_weights_as_the_model_has_them(kind, fsdp, mesh):
    """Each leaf has the dtype of its weight, and belongs where its moments do."""
    content = {"torch": FILES / "torch.pt", "fsdp": fsdp / "one"}.get(kind)
    if content is None:
        weights = load_weights(FILES / "torch.pt")
        content = {"model": {n: w.astype(jnp.bfloat16) for n, w in weights.items()}}
    expected = rearranged(load_weights(content))
    assert_same(load_weights(content, rearranged), expected)
    placed = load_weights(content, rearranged, shardings=choose(mesh))
    assert_same(placed, jax.tree.map(jnp.asarray, expected))  # of float64, float32
    for leaf in jax.tree.leaves(placed):
        assert leaf.sharding == choose(mesh)("", leaf.shape)
    tree = jax.tree.map(lambda leaf: leaf.sharding, placed)
    again = load_weights(content, rearranged, shardings=tree)
    assert jax.tree.map(lambda leaf: leaf.sharding, again) == tree


def test_paths_and_shapes_that_a_function_gets(mesh):
    seen = {}

    def sharding(path, shape):
        seen[path] = shape
        return NamedSharding(mesh, PartitionSpec())

    functions.from_torch(FILES / "torch.pt", rearranged, shardings=sharding)
    assert seen["dense/kernel"] == (4, 3)
    assert seen["head/1/row"] == (3,)
    assert seen["norms"] == (2, 3)
    seen.clear()
    load_weights(FILES / "torch.pt", shardings=sharding)
    assert seen == runs.SHAPES


def test_donated_and_not_shared(mesh):
    """All of the state may be donated, and the user's arrays may change."""
    content = read(FILES / "torch.pt")
    for buffers in content["optimizer"]["state"].values():
        for key in [*buffers]:
            buffers[key] = np.array(buffers[key])
    rows = choose(mesh)
    tx, state = functions.from_torch(content, shardings=rows)
    before = jax.tree.map(np.array, state)
    for buffers in content["optimizer"]["state"].values():
        for buffer in buffers.values():
            buffer += 1
    assert_same(jax.tree.map(np.asarray, state), before)
    # What NumPy has looked at is not donated.
    tx, state = functions.from_torch(content, shardings=rows)
    zeros = jax.tree.map(jnp.zeros_like, state.nu)
    old = state
    places = (None, jax.tree.map(lambda x: x.sharding, state))
    update = jax.jit(tx.update, donate_argnums=1, out_shardings=places)
    update(zeros, state, zeros)
    assert all(x.is_deleted() for x in jax.tree.leaves(old))


# --- What does not fit.


def refuse(match, error: type[Exception] = ValueError, to_params=None, **more):
    with pytest.raises(error, match=match):
        functions.from_torch(FILES / "torch.pt", to_params, **more)


def test_names_the_leaf_that_does_not_fit(mesh):
    rows = NamedSharding(mesh, PartitionSpec("columns"))
    refuse(
        r"that of leaf 'dense\.bias', .*, does not fit its shape \(3,\)", shardings=rows
    )
    with pytest.raises(ValueError, match=r"leaf 'dense\.bias', .*shape \(3,\)"):
        load_weights(FILES / "torch.pt", shardings=rows)
    refuse(
        r"function of a leaf's path and of its shape, .* too many positional",
        error=TypeError,
        shardings=lambda path: rows,
    )
    too_many = NamedSharding(mesh, PartitionSpec(None, None, "rows"))
    refuse(r"leaf 'dense\.bias', .*, does not fit its shape", shardings=too_many)
    refuse(
        r"a jax.sharding.Sharding for leaf 'dense/bias', but it was 'rows'",
        TypeError,
        rearranged,
        shardings=lambda path, shape: "rows",
    )


@pytest.mark.parametrize("make", [lambda mesh: mesh, lambda _: PartitionSpec("rows")])
def test_what_is_not_a_sharding(mesh, make):
    refuse(
        r"a pytree of them or a function .*, but it was (Mesh|P)",
        TypeError,
        shardings=make(mesh),
    )


def test_names_what_a_tree_lacks(mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    tree = dict.fromkeys(runs.SHAPES, everywhere)
    missing = {n: s for n, s in tree.items() if n != "head.bias"}
    refuse(r"leaf \['head\.bias'\] is missing", shardings=missing)
    refuse(r"leaf \['x'\] is unexpected", shardings={**tree, "x": everywhere})
    renamed = {name.upper(): everywhere for name in tree}
    both = r"leaf \['\w.*'\] is missing; … *; leaf \['[A-Z.]*'\] is unexpected; "
    refuse(both, shardings=renamed)
    with pytest.raises(ValueError, match=r"leaf \['head\.bias'\] is missing"):
        load_weights(FILES / "torch.pt", shardings=missing)


# --- What is read.


def test_the_default_device_is_the_callers(monkeypatch):
    """Also where another thread reads, as for files with more than one batch."""
    monkeypatch.setattr(placement, "_BATCH_BYTES", 1)
    device = jax.devices()[3]
    with jax.default_device(device):
        _, state = functions.from_torch(FILES / "torch.pt")
    assert {x for leaf in jax.tree.leaves(state) for x in leaf.devices()} == {device}


@pytest.mark.parametrize("fails_at", range(0, 60, 3))
def test_an_interrupted_load_leaves_nothing(fails_at, fsdp, mesh, monkeypatch):
    """No array on a device, no open file, no thread; and the files as they were."""
    path = fsdp / "four"
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    original, calls = Source._open_range, 0

    def open_range(self, offset, size):
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise KeyboardInterrupt
        return original(self, offset, size)

    gc.collect()
    arrays, opened = len(jax.live_arrays()), len(os.listdir("/dev/fd"))
    threads = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(Source, "_open_range", open_range)
        with pytest.raises(KeyboardInterrupt):
            functions.from_torch(path, shardings=choose(mesh))
    gc.collect()
    assert len(jax.live_arrays()) <= arrays
    assert len(os.listdir("/dev/fd")) <= opened
    assert threading.active_count() <= threads
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@pytest.mark.live
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["torch", "distributed"])
def test_only_the_rows_of_this_process_are_read(
    kind, transposed, tmp_path, monkeypatch
):
    """As if the other devices of the mesh were another process's."""
    torch = import_module("torch")
    shape = (64, 4096)
    weight = torch.nn.Parameter(torch.arange(float(np.prod(shape))).reshape(shape))
    optimizer = torch.optim.RMSprop([("w", weight)])
    weight.grad = torch.ones(shape)
    optimizer.step()
    path = tmp_path / "checkpoint"
    content = {"model": {"w": weight.detach()}, "optimizer": optimizer.state_dict()}
    if kind == "torch":
        torch.save(content, path)
    else:
        distributed = import_module("torch.distributed.checkpoint")
        with pytest.warns(UserWarning, match="single process"):
            distributed.save(content, checkpoint_id=path)
    read_bytes = []
    original = Source._open_range

    def open_range(self, offset, size):
        read_bytes.append(size)
        return original(self, offset, size)

    mesh = jax.make_mesh((8,), ("rows",))
    spec = PartitionSpec(None, "rows") if transposed else PartitionSpec("rows")
    sharding = NamedSharding(mesh, spec)
    part = sharding.addressable_devices_indices_map

    class OfOneProcess(NamedSharding):
        def addressable_devices_indices_map(self, global_shape):
            items = [*part(global_shape).items()]
            return dict(items[2:4])

    made = []
    monkeypatch.setattr(Source, "_open_range", open_range)
    monkeypatch.setattr(
        jax,
        "make_array_from_single_device_arrays",
        lambda shape, sharding, shards: made.extend(shards) or shards[0],
    )
    monkeypatch.setattr(
        placement, "_check_fits", lambda name, shape, sharding: sharding
    )
    functions.from_torch(
        path,
        (lambda weights: {"w": weights["w"].T}) if transposed else None,
        shardings=OfOneProcess(mesh, spec),
    )
    total = np.prod(shape) * 4
    nu = np.asarray(optimizer.state[weight]["square_avg"])
    expected = nu.T if transposed else nu
    for shard, index in zip(made, [*part(expected.shape).values()][2:4], strict=False):
        np.testing.assert_array_equal(shard, expected[index])
    assert total / 4 <= sum(read_bytes) <= total / 4 + 10_000
