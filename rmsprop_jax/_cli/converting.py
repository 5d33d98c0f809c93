"""``rmsprop-jax convert``: write the state and the weights for JAX's tools."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax._cli.float64 import use_float64
from rmsprop_jax._cli.inspecting import make_report
from rmsprop_jax._cli.lines import Plan
from rmsprop_jax._cli.report import Optimizer, Report
from rmsprop_jax._cli.writing import (
    WRITERS,
    check_replaceable,
    replace_when_whole,
)
from rmsprop_jax.checkpoints import load_weights
from rmsprop_jax.checkpoints._convert.arrays import NumpyArray

# With `tx` and `params` of the lines that `inspect` prints.
_READ_FLAT = """\
import jax
import jax.numpy as jnp
{imports}

arrays = {load}
template = {{"opt_state": tx.init(params)}}
restored = jax.tree.map_with_path(
    lambda path, _: jnp.asarray(
        arrays[jax.tree_util.keystr(path, simple=True, separator="/")]
    ),
    template,
)
opt_state = restored["opt_state"]"""
_READ_WEIGHTS = """
weights = {
    key.removeprefix("weights/"): x
    for key, x in arrays.items()
    if key.startswith("weights/")
}"""
_READ_ORBAX = """\
import orbax.checkpoint as ocp

checkpointer = ocp.StandardCheckpointer()
template = {{"opt_state": tx.init(params)}}
{weights}opt_state = checkpointer.restore({path!r}, template)["opt_state"]"""
_READ_ORBAX_WEIGHTS = """\
weights = template["weights"] = checkpointer.restore({path!r})["weights"]
"""
_LOADERS = {
    "npz": ("import numpy as np", "np.load({path!r})"),
    "safetensors": ("from safetensors.numpy import load_file", "load_file({path!r})"),
}


def convert(
    path: str, out: str, form: str, *, has_weights: bool, is_forced: bool
) -> str:
    """Write the state of a checkpoint's optimizer in another form.

    Args:
        path: The checkpoint.
        out: Where to write.
        form: One of `WRITERS`.
        has_weights: Whether to write the weights too.
        is_forced: Whether to replace what is there.

    Returns:
        The lines of Python that read it back.

    Raises:
        ImportError: If the package that writes the form is missing.
        OSError: If it can't be written.
        ValueError: If the checkpoint can't be read or resumed, or if ``out`` exists
            and is not to be replaced.
    """
    # A bad place is refused before the checkpoint is read, which may take long.
    if not Path(out).name:
        raise ValueError(f"OUT must be the name of a file or folder, but was {out!r}.")
    if is_forced:
        check_replaceable(Path(out), Path(path), form)
    with replace_when_whole(Path(out), is_forced=is_forced) as partial:
        report = make_report(path)
        optimizer, plan = _choose(path, report)
        with use_float64(), warnings.catch_warnings():
            # The warnings are about settings, which `inspect` shows and nothing writes.
            warnings.simplefilter("ignore")
            _, opt_state = plan.resume(optimizer.content)
            tree: dict[str, optax.Params] = {"opt_state": opt_state}
            if has_weights:
                names = plan.weights.names if plan.weights else None
                where = plan.weights.path if plan.weights else path
                weights = load_weights(where, names=names and [*names])
                tree["weights"] = {k: jnp.asarray(x) for k, x in weights.items()}
            WRITERS[form](partial, flatten(tree), tree)
    return write_lines(out, form, has_weights=has_weights)


def _choose(path: str, report: Report) -> tuple[Optimizer, Plan]:
    """Return the only optimizer that can be resumed."""
    found = [(x, x.plan) for x in report.optimizers if x.plan is not None]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(x.place for x, _ in found)
        raise ValueError(
            f"{path!r} holds several optimizers, {places}. Save one of them alone: "
            "read(path) has them."
        )
    notes = [note for x in report.optimizers for note in x.notes] + report.notes
    raise ValueError(
        f"{path!r} holds no RMSProp's state that can be converted. "
        + " ".join(notes[:1])
    )


def flatten(tree: optax.Params) -> dict[str, NumpyArray]:
    """Return the arrays of a tree by their paths, such as ``opt_state/nu/weight``.

    Raises:
        ValueError: If two have the same.
    """
    arrays: dict[str, NumpyArray] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in arrays:
            raise ValueError(
                f"Two arrays would be called {name!r}: convert --to orbax."
            )
        arrays[name] = np.asarray(leaf)
    return arrays


def write_lines(out: str, form: str, *, has_weights: bool) -> str:
    """Return the lines of Python that read what was written."""
    if form == "orbax":
        path = str(Path(out).absolute())
        weights = _READ_ORBAX_WEIGHTS.format(path=path) if has_weights else ""
        return _READ_ORBAX.format(path=path, weights=weights)
    imports, load = _LOADERS[form]
    lines = _READ_FLAT.format(imports=imports, load=load.format(path=out))
    return lines + _READ_WEIGHTS if has_weights else lines
