"""Records folders that FSDP runs save, and where the runs went on from them.

    pip install torch==2.13.0
    python tests/recorded/record_fsdp.py             # or names of RUNS

writes ``files/fsdp.zip`` beside this file: for each of `RUNS` the folder that
torch.distributed.checkpoint wrote after BEFORE steps, and in ``<name>.npz`` the weights
AFTER steps later, with the versions that made them. ``--folder DIR`` writes the same
files there instead. The processes of a run talk by gloo, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for whoever runs this as a script

from recorded import runs  # noqa: E402

FILE = HERE / "files" / "fsdp.zip"
Arrays = Mapping[str, np.ndarray]


class FsdpRun(NamedTuple):
    """A run in several processes.

    Attributes:
        processes: How many.
        shard: Makes the model one of FSDP, in each process.
        settings: Of the group of the matrices, and of that of the vectors.
        is_flat: Whether the optimizer's state is saved by name.
        keys: What the saved dictionary calls the model and the optimizer.
    """

    processes: int
    shard: Callable[[Any], Any]
    settings: tuple[dict[str, Any], dict[str, Any]]
    is_flat: bool = False
    keys: tuple[str, str] = ("model", "optim")


def fsdp2(model: Any) -> Any:
    """Each tensor in as many rows as there are processes; some have none."""
    import_module("torch.distributed.fsdp").fully_shard(model, mesh=_mesh())
    return model


def hybrid(model: Any) -> Any:
    """Two copies, each of which is in two parts."""
    mesh = _mesh((2, -1), ("copies", "parts"))
    import_module("torch.distributed.fsdp").fully_shard(model, mesh=mesh)
    return model


def in_two_dimensions(model: Any) -> Any:
    """The columns of one layer in two, and the rows of all."""
    parallel = import_module("torch.distributed.tensor.parallel")
    mesh = _mesh((2, -1), ("rows", "columns"))
    # It has the rows of the matrix that multiplies from the right: torch's columns.
    plan = {"head": parallel.RowwiseParallel()}
    parallel.parallelize_module(model, mesh["columns"], plan)
    import_module("torch.distributed.fsdp").fully_shard(model, mesh=mesh["rows"])
    return model


def fsdp1(model: Any) -> Any:
    """All tensors in one vector, of which each process has a part."""
    torch = import_module("torch")
    return import_module("torch.distributed.fsdp").FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=True
    )


_ALL = {"momentum": 0.875, "centered": True, "eps": 1 / 1024}
_OTHER = {"alpha": 0.875, "weight_decay": 1 / 64, "eps": 1 / 1024}
RUNS = {
    "one": FsdpRun(1, fsdp2, (_ALL, _ALL)),
    "two": FsdpRun(2, fsdp2, (_ALL, _OTHER)),
    "four": FsdpRun(4, fsdp2, (_ALL, _OTHER), is_flat=True),
    "hybrid": FsdpRun(4, hybrid, (_ALL, _ALL), keys=("app", "opt")),
    "grid": FsdpRun(4, in_two_dimensions, (_ALL, _OTHER)),
    # FSDP1 needs the same buffers in all groups.
    "fsdp1": FsdpRun(2, fsdp1, (_ALL, _ALL | _OTHER)),
    "fsdp1_flat": FsdpRun(4, fsdp1, (_ALL, _ALL | _OTHER), is_flat=True),
}


def _mesh(shape: tuple[int, ...] = (-1,), names: tuple[str, ...] = ("parts",)) -> Any:
    torch = import_module("torch")
    world = torch.distributed.get_world_size()
    sizes = tuple(world // 2 if size < 0 and len(shape) > 1 else size for size in shape)
    sizes = tuple(world if size < 0 else size for size in sizes)
    init = torch.distributed.device_mesh.init_device_mesh
    return init("cpu", sizes, mesh_dim_names=names)


def _make_model() -> Any:
    """The layers of `runs.torch_model`, whose gradients are what it is called with."""
    torch = import_module("torch")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in runs.torch_model("float64").named_children():
                self.add_module(name, layer)

        def forward(self, gradients: Mapping[str, Any]) -> Any:
            named = [*self.named_parameters()]
            return sum((p * gradients[_clean(name)]).sum() for name, p in named)

    return Model()


def _clean(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "")


def _step(model: Any, optimizer: Any, gradients: Arrays) -> None:
    torch = import_module("torch")
    tensors = {name: torch.tensor(g) for name, g in gradients.items()}
    named = [(_clean(name), p) for name, p in model.named_parameters()]
    if all(hasattr(p, "placements") for _, p in named):
        distribute = import_module("torch.distributed.tensor").distribute_tensor
        for name, p in named:
            p.grad = distribute(tensors[name], p.device_mesh, p.placements)
    else:
        model(tensors).backward()
    optimizer.step()
    optimizer.zero_grad()


def _work(run: FsdpRun, rank: int, folder: Path, store: str) -> None:
    """Does what one process of a run does."""
    warnings.simplefilter("ignore")
    torch = import_module("torch")
    torch.set_num_threads(1)
    checkpoint = import_module("torch.distributed.checkpoint")
    functions = import_module("torch.distributed.checkpoint.state_dict")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=run.processes
    )
    model = run.shard(_make_model())
    groups = [
        {
            "params": [
                p
                for name, p in model.named_parameters()
                if (len(runs.SHAPES[_clean(name)]) > 1) == is_matrix
            ],
            **settings,
        }
        for is_matrix, settings in zip((True, False), run.settings, strict=True)
    ]
    # Tensors of different meshes can't be updated in one call.
    optimizer = torch.optim.RMSprop(groups, lr=runs.RATE, foreach=False)
    options = functions.StateDictOptions(flatten_optimizer_state_dict=run.is_flat)
    for t, gradients in enumerate(runs.gradients()):
        if t == runs.BEFORE:
            parts = functions.get_state_dict(model, optimizer, options=options)
            # The folder's name is in the file, so it is a short one.
            os.chdir(folder.parent)
            saved = dict(zip(run.keys, parts, strict=True))
            checkpoint.save(saved, checkpoint_id=folder.name)
        _step(model, optimizer, gradients)
    whole = functions.StateDictOptions(full_state_dict=True)
    weights = functions.get_model_state_dict(model, options=whole)
    if rank == 0:
        made_by = {"torch": torch.__version__, "python": platform.python_version()}
        np.savez_compressed(
            folder.with_suffix(".npz"),
            made_by=json.dumps(made_by),
            **{name: w.numpy() for name, w in weights.items()},
        )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def make(name: str, folder: Path) -> None:
    """Writes the folder of a run, and the weights after it, by processes of its own."""
    import_module("torch.distributed.checkpoint.state_dict")  # before the processes
    with tempfile.TemporaryDirectory() as shared:
        children = []
        for rank in range(RUNS[name].processes):
            child = os.fork()
            if not child:
                try:
                    _work(RUNS[name], rank, folder / name, f"{shared}/store")
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        failed = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    if any(failed):
        raise RuntimeError(f"the processes of {name} ended with {failed}")


def main() -> None:
    """Records the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(RUNS))
    parser.add_argument("--folder", help="where to write the files, not into a zip")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(given.folder or made)
        for name in given.names or RUNS:
            make(name, folder)
        if given.folder:
            return
        with zipfile.ZipFile(FILE, "w", zipfile.ZIP_LZMA) as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
    print(f"{FILE.name}, {FILE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
