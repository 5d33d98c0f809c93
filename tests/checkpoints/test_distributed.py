"""Folders of torch.distributed.checkpoint, as FSDP runs save them."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from recorded import runs
from support.comparisons import assert_same
from support.distributed import change, extract, record, resume_all
from support.untyped import checkpoints as functions

from rmsprop_jax.checkpoints import load_weights, read, to_torch

from_torch = functions.from_torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return extract(tmp_path_factory.mktemp("fsdp"))


@pytest.mark.numerics
@pytest.mark.usefixtures("x64")
def test_recorded_runs_go_on(folder):
    """All of them as one program, in float64."""
    distances = resume_all(folder)
    assert max(distances.values()) <= 1e-12, distances


def test_what_a_folder_holds(folder):
    """Dictionaries and lists as they were saved, and their tensors whole."""
    hybrid, four, two = (read(folder / name) for name in ("hybrid", "four", "two"))
    assert hybrid.keys() == {"app", "opt"}
    group = hybrid["opt"]["param_groups"][1]
    assert (group["lr"], group["centered"], group["foreach"]) == (1 / 64, True, False)
    assert group["params"] == [n for n in runs.SHAPES if len(runs.SHAPES[n]) < 2]
    assert four["optim"]["param_groups.dense.weight.momentum"] == 0.875
    shapes = {name: w.shape for name, w in two["model"].items()}
    assert shapes == runs.SHAPES
    assert two["optim"]["state"]["norm.bias"]["step"] == runs.BEFORE
    assert_same(load_weights(folder / "two"), two["model"])
    assert_same(from_torch(two)[1], from_torch(folder / "two" / ".metadata")[1])


def test_all_forms_of_one_state_are_equal(folder):
    """Nested or flat, in one or in four processes, the state is the same."""
    two, four, grid = (from_torch(folder / name)[1] for name in ("two", "four", "grid"))
    assert {*two.inner_states} == {"group_0", "group_1"}

    def by_name(state):
        return {
            name: [getattr(inner.inner_state, moment)[name] for moment in moments]
            for inner in state.inner_states.values()
            for moments in [["nu", "mu"] if inner.inner_state.mu else ["nu"]]
            for name, nu in inner.inner_state.nu.items()
            if hasattr(nu, "shape")
        }

    assert_same(by_name(two), by_name(four))
    assert_same(by_name(two), by_name(grid))


def test_back_to_torch(folder):
    like = read(folder / "two")
    _, state = from_torch(folder / "two")
    back = to_torch(state, like=like)
    assert back["param_groups"] == like["optim"]["param_groups"]
    for name, buffers in like["optim"]["state"].items():
        for key, buffer in buffers.items():
            np.testing.assert_allclose(back["state"][name][key], buffer, rtol=1e-6)


def test_numbers_are_text_in_the_state(folder, tmp_path):
    """A dictionary's keys become text; the elements of the groups' lists do not."""

    def number(metadata):
        """As optimizer.state_dict() numbers its parameters, if nobody gave names."""
        names = [n for n in runs.SHAPES if len(runs.SHAPES[n]) > 1]
        names += [n for n in runs.SHAPES if n not in names]
        paths = metadata["planner_data"]
        for fqn, path in paths.items():
            if path[:2] == ("optim", "state"):
                i = names.index(path[2])
                paths[fqn] = (*path[:2], str(i), path[3])

    numbered = read(change(folder / "two", tmp_path / "numbered", number))
    ids = iter(range(len(runs.SHAPES)))
    for group in numbered["optim"]["param_groups"]:
        group["params"] = [next(ids) for _ in group["params"]]
    names = [
        n for g in read(folder / "two")["optim"]["param_groups"] for n in g["params"]
    ]
    assert "0" in numbered["optim"]["state"]
    _, state = from_torch(numbered, names=names)
    assert_same(state, from_torch(folder / "two")[1])


def test_without_the_nested_paths(folder, tmp_path):
    """A flat dictionary's planner keeps none."""

    def forget(metadata):
        metadata["planner_data"] = None

    flat = read(change(folder / "two", tmp_path / "flat", forget))
    assert flat["model.dense.bias"].shape == (3,)


def test_bfloat16(folder, tmp_path):
    """A dtype that NumPy does not have by itself."""

    def narrow(metadata):
        properties = entry(metadata, "model.head.bias")["properties"].fields
        properties["state"] = (jnp.dtype(jnp.bfloat16), *properties["state"][1:])

    changed = change(folder / "two", tmp_path / "bf16", narrow)
    with pytest.raises(ValueError, match=r"dtype bfloat16, but it is .*float64"):
        read(changed)


# --- Folders that are not whole, or that a stranger made.


def entry(metadata, name="model.head.weight"):
    return metadata["state_dict_metadata"][name].fields


def places(metadata, name="model.head.weight"):
    return [i for i in metadata["storage_data"] if i.fields["fqn"] == name]


def no_chunk(m):
    del entry(m)["chunks"][1]


def no_place(m):
    del m["storage_data"][places(m)[1]]


def chunk_twice(m):
    entry(m)["chunks"].append(entry(m)["chunks"][0])


def place_twice(m):
    first = places(m)[0]
    m["storage_data"][record(**first.fields)] = m["storage_data"][first]


def overlap(m):
    entry(m)["chunks"][0].fields["sizes"] = (2, 3)


def out_of_bounds(m):
    entry(m)["chunks"][1].fields["sizes"] = (2, 3)


def other_axes(m):
    entry(m)["chunks"][1].fields["sizes"] = (3,)


def negative(m):
    entry(m)["chunks"][1].fields["offsets"] = (-1, 0)


def few_bytes(m):
    m["storage_data"][places(m)[0]].fields["length"] = 8


def beyond_the_end(m):
    m["storage_data"][places(m)[1]].fields["offset"] += 10**6


def swapped(m):
    """The bytes of another tensor, which are as many."""
    other = places(m, "model.norm.bias")[0]
    m["storage_data"][places(m)[0]] = m["storage_data"][other]


def not_of_torch(m):
    m["storage_data"][places(m)[0]].fields["offset"] += 4


def elsewhere(path):
    def edit(m):
        for info in m["storage_data"].values():
            info.fields["relative_path"] = path

    return edit


def transformed(m):
    m["storage_data"][places(m)[0]].fields["transform_descriptors"] = ["zstd"]


def huge(m):
    entry(m)["size"] = (2**40, 3)
    entry(m)["chunks"][:] = [record(offsets=(0, 0), sizes=(2**40, 3))]


def scattered(m):
    """Chunks that begin and end everywhere in each of six axes."""
    entry(m)["size"] = (2**7,) * 6
    entry(m)["chunks"][:] = [
        record(offsets=(i,) * 6, sizes=(1,) * 6) for i in range(100)
    ]
    place = m["storage_data"][places(m)[0]]
    for i in range(100):
        index = record(fqn="model.head.weight", offset=(i,) * 6)
        m["storage_data"][index] = place


def through_a_value(m):
    m["planner_data"]["model.head.bias"] = ("model", "head.weight", "x")


def one_path(m):
    m["planner_data"]["model.head.bias"] = ("model", "head.weight")


def huge_list(m):
    m["planner_data"]["model.head.bias"] = ("list", 10**9)


def no_records(m):
    m["storage_data"] = dict.fromkeys(range(3))


WEIGHT = "'model.head.weight'"
DAMAGED = {
    no_chunk: rf"the chunk at \(1, 0\) of {WEIGHT} is missing",
    no_place: rf"the chunk at \(1, 0\) of {WEIGHT} is missing",
    chunk_twice: rf"the chunk at \(0, 0\) of {WEIGHT} is there twice",
    place_twice: rf"the chunk at \(0, 0\) of {WEIGHT} is in two places",
    overlap: rf"the chunk at \(1, 0\) of {WEIGHT} overlaps another one",
    out_of_bounds: rf"the chunk at \(1, 0\) of {WEIGHT}, of shape \(2, 3\), is out of",
    other_axes: f"a chunk of {WEIGHT} has more or fewer axes than the tensor",
    negative: "non-negative integer, but it was -1",
    few_bytes: rf"the chunk at \(0, 0\) of {WEIGHT} needs 24 bytes, but it has 8",
    beyond_the_end: f"'__1_0.distcp' ends at byte .* that {WEIGHT} has there",
    swapped: r"must be a tensor of shape \(1, 3\).*, but it is .*of shape \(2,\)",
    not_of_torch: "are not what torch.save writes",
    elsewhere("../two/__0_0.distcp"): "'../two/__0_0.distcp' must be in the folder",
    elsewhere("/etc/passwd"): "'/etc/passwd' must be in the folder itself",
    elsewhere(".."): r"'\.\.' must be in the folder itself",
    elsewhere("link"): "'link' must be in the folder itself",
    elsewhere("none"): "its file 'none' is missing",
    elsewhere("a\0b"): "must be in the folder itself",
    transformed: f"the bytes of {WEIGHT} were compressed, or transformed otherwise",
    huge: rf"the chunk at \(0, 0\) of {WEIGHT} is missing|needs \d+ bytes, but it has",
    scattered: f"the chunks of {WEIGHT} are not laid out in a grid",
    through_a_value: "goes through a value",
    one_path: "two values have the path",
    huge_list: "",
    no_records: "its .metadata has no 'fqn' where it must have one",
}


@pytest.mark.parametrize("edit", DAMAGED, ids=[e.__qualname__ for e in DAMAGED])
def test_names_what_is_wrong(edit, folder, tmp_path):
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "link").symlink_to(folder / "two" / "__0_0.distcp")
    change(folder / "two", changed, edit)
    match = DAMAGED[edit]
    if match:
        with pytest.raises(ValueError, match=rf"^'{changed}.*{match}"):
            read(changed)
    else:
        read(changed)


def test_many_names_of_the_same_bytes(folder, tmp_path):
    """What is declared is bounded by the bytes of all files, however often it is."""
    size = 4 * 2**20

    def repeat(m):
        place = record(relative_path="many", offset=0, length=size)
        of_zero = entry(m)["properties"]
        for i in range(100):
            chunk = record(offsets=(0,), sizes=(size // 8,))
            m["state_dict_metadata"][f"w{i}"] = record(
                properties=of_zero, size=(size // 8,), chunks=[chunk]
            )
            m["storage_data"][record(fqn=f"w{i}", offset=(0,))] = place

    into = tmp_path / "changed"
    into.mkdir()
    with open(into / "many", "wb") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match="made to fill the memory"):
        read(change(folder / "two", into, repeat))


def test_folders_that_are_not_whole(folder, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(folder / "two", partial)
    (partial / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"has no \.metadata, which .* writes last"):
        read(partial)
    (partial / ".metadata").mkdir()
    with pytest.raises(ValueError, match="can't be read"):
        read(partial)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="hold no optimizer settings"):
        read(tmp_path)


def test_a_flipped_bit_is_found(folder, tmp_path):
    into = tmp_path / "changed"
    shutil.copytree(folder / "one", into)
    file = into / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    expected = load_weights(into)["dense.weight"].tobytes()
    content[content.index(expected)] ^= 1
    file.write_bytes(content)
    match = r"complete folder.*dense\.weight.*, in its file '__0_0\.distcp': .*CRC-32"
    with pytest.raises(ValueError, match=match):
        load_weights(into)
    with pytest.raises(
        ValueError, match=r"one of the files that .* wrote: give their folder"
    ):
        load_weights(file)
