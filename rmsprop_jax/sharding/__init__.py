"""Where the optimizer's state lives on a mesh of devices.

RMSProp is elementwise, so that its state belongs where the parameters are: `init`
gives it their shardings and `update` leaves them as they are, without communication.
`state_shardings` says beforehand what they will be, for any chain; `zero1` splits the
state where the parameters are not split; `check` fails where a leaf is elsewhere.
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import optax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from rmsprop_jax import _errors
from rmsprop_jax._zero1 import zero1

__all__ = ["check", "state_shardings", "zero1"]


def state_shardings(tx: optax.GradientTransformation, params: Any) -> Any:
    """The shardings of ``tx.init(params)``, without making it.

    What is made in the image of a parameter (``zeros_like``) has its sharding; all else
    (counts, hyperparameters) is replicated: ``tx.init`` is traced with parameters whose
    types carry their shardings. It may be any transformation, or a chain.

    Args:
        tx: The transformation.
        params: The parameters: arrays, or ``jax.ShapeDtypeStruct`` with a ``sharding``,
            all on one mesh (concrete or abstract, of automatic or explicit axes), or
            all on the same single device.

    Returns:
        A tree like ``tx.init(params)`` with a sharding in place of every array, for
        ``jax.jit(tx.init, out_shardings=...)``, for `check`, or for restoring a
        checkpoint. They are on the mesh of the parameters, in its default memory.

    Raises:
        ValueError: Where a leaf has no sharding, two leaves differ in their mesh, or
            there is no leaf.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.sharding import state_shardings
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> rows = NamedSharding(mesh, PartitionSpec("data"))
        >>> params = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=rows)
        >>> tx = rmsprop(0.01, momentum=0.9)
        >>> shardings = state_shardings(tx, params)
        >>> shardings.nu.shard_shape((16, 4)), shardings.count.is_fully_replicated
        ((2, 4), True)
    """
    home = _home(params)
    if isinstance(home, SingleDeviceSharding):
        return jax.tree.map(lambda _: home, jax.eval_shape(tx.init, params))
    typed = AbstractMesh(
        home.axis_sizes,
        home.axis_names,
        axis_types=(AxisType.Explicit,) * len(home.axis_names),
    )

    def with_type(p):
        sharding = NamedSharding(typed, p.sharding.spec)
        return jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding)

    def on_the_mesh(x):
        # What is made of nothing (a count) has no sharding.
        spec = PartitionSpec() if x.sharding is None else x.sharding.spec
        return NamedSharding(home, spec)

    # JAX 0.12 asks for the mesh in the context; 0.7 can't have an abstract one there,
    # and takes it from the arguments.
    context = getattr(jax.sharding, "use_abstract_mesh", contextlib.nullcontext)
    with context(typed):
        state = jax.eval_shape(tx.init, jax.tree.map(with_type, params))
    return jax.tree.map(on_the_mesh, state)


def _home(params: Any) -> Any:
    """The one mesh, or the one device, that all the parameters are on."""
    first, home = "", None
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        name = _errors.leaf(path)
        sharding = getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            here = sharding.mesh
        elif isinstance(sharding, SingleDeviceSharding):
            here = sharding
        else:
            raise ValueError(
                f"Leaf {name} of params must have a NamedSharding, but it was "
                f"{_errors.sharding(p)}. Put it on the mesh with "
                "jax.device_put(params, NamedSharding(mesh, PartitionSpec(...))), or "
                "give jax.ShapeDtypeStruct(shape, dtype, sharding=...) instead."
            )
        if home is None:
            first, home = name, here
        elif here != home:
            raise ValueError(
                f"The leaves of params must all be on one mesh, but {first} is on "
                f"{home} and {name} on {here}. Put them all on the same with "
                "jax.device_put; what is not split has PartitionSpec()."
            )
    if home is None:
        raise ValueError(
            f"params must have a leaf, whose mesh is the state's, but it was {params}."
        )
    return home


def check(state: Any, expected: Any) -> None:
    """Raises where an array is not sharded as expected.

    Args:
        state: A tree of arrays, such as an optimizer's state; not under ``jit``.
        expected: A tree of shardings like it, such as `state_shardings` returns; the
            same parts on the same devices are the same.

    Raises:
        ValueError: Naming the leaves, where the trees differ or a leaf is elsewhere.
        TypeError: Where a leaf of ``expected`` is not a sharding.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.sharding import check, state_shardings
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> rows = NamedSharding(mesh, PartitionSpec("data"))
        >>> params = jax.device_put(jnp.ones((16, 4)), rows)
        >>> tx = rmsprop(0.01)
        >>> state = tx.init(params)
        >>> check(state, state_shardings(tx, params))
        >>> whole = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        >>> check(whole, state_shardings(tx, params))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: The state is not sharded as expected: leaf .nu must be ...
    """
    for path, sharding in jax.tree_util.tree_leaves_with_path(expected):
        if not isinstance(sharding, Sharding):
            raise TypeError(
                f"Leaf {_errors.leaf(path)} of expected must be a sharding, but it was "
                f"{sharding!r}. Make it with state_shardings(tx, params), or with "
                "NamedSharding(mesh, PartitionSpec(...))."
            )
    have, structure = jax.tree_util.tree_flatten_with_path(state)
    want, expected_structure = jax.tree_util.tree_flatten_with_path(expected)
    if structure != expected_structure:
        odd = _errors.difference(
            [_errors.leaf(path) for path, _ in want],
            [_errors.leaf(path) for path, _ in have],
        )
        odd = odd or _errors.kinds(expected_structure, structure)
        raise ValueError(
            f"expected must be a tree of shardings like the state, but {odd}. "
            "Make it with state_shardings(tx, params), for the same tx and params."
        )
    wrong = []
    for (path, x), (_, sharding) in zip(have, want, strict=True):
        is_array = isinstance(getattr(x, "sharding", None), Sharding)
        if is_array and x.sharding.is_equivalent_to(sharding, x.ndim):
            continue
        must, was = _errors.sharding(sharding), _errors.sharding(x)
        if must == was and isinstance(sharding, NamedSharding):
            must, was = _in_full(sharding), _in_full(x.sharding)
        wrong.append(f"leaf {_errors.leaf(path)} must be {must}, but it was {was}")
    if wrong:
        raise ValueError(
            f"The state is not sharded as expected: {_errors.few(wrong)}. Make it with "
            "jax.jit(tx.init, out_shardings=expected), or move it there with "
            "jax.device_put(state, expected)."
        )


def _in_full(sharding: Any) -> str:
    """A sharding with its memory and its devices, for an error."""
    devices = [device.id for device in sharding.mesh.devices.flat]
    return (
        f"{_errors.sharding(sharding)} in {sharding.memory_kind} of devices {devices}"
    )
