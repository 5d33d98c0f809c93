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
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import (
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from rmsprop_jax import _checks, _codes


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

    Example:
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
        name = _name(path)
        sharding = getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            here = sharding.mesh
        elif isinstance(sharding, SingleDeviceSharding):
            here = sharding
        else:
            raise ValueError(
                f"Leaf {name} of params must have a NamedSharding, but it was "
                f"{_described(p)}. Put it on the mesh with jax.device_put(params, "
                "NamedSharding(mesh, PartitionSpec(...))), or give "
                "jax.ShapeDtypeStruct(shape, dtype, sharding=...) instead."
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


def zero1(
    tx: optax.GradientTransformation, mesh: Any, axis: str = "data"
) -> optax.GradientTransformationExtraArgs:
    """ZeRO stage 1: every device keeps and updates its own part of the state.

    For parameters that are replicated, as in data parallelism. Of N devices along the
    axis each updates 1/N of every leaf, and then they share the updates: XLA scatters
    the gradients' sum (or slices it), and gathers the updates.

    A leaf is split along its first dimension that N divides without cutting a block of
    8-bit state. If there is none, its state is of shape ``(1, ..., 1, size)``, with
    zeros at the end up to a multiple of N; so the shapes of the state may differ with
    N. Scalars and integers are not split. The numbers are those of the unsplit run but
    for rounding, as XLA may fuse the two differently, and for 8-bit state, whose blocks
    are others in a leaf of another shape.

    Args:
        tx: The whole chain, of elementwise transformations such as `rmsprop`, or such
            as reduce by sums (``optax.clip_by_global_norm``). Its functions of the
            parameters (masks) see leaves of the same rank, but maybe another shape.
            Extra arguments reach it as they are.
        mesh: The ``jax.sharding.Mesh`` that the parameters are on.
        axis: The name of the mesh's axis to split over.

    Returns:
        A gradient transformation whose state is that of ``tx`` for the split leaves.

    Raises:
        ValueError: If the mesh has no such axis. From ``init``, where a leaf is seen
            not to be replicated, or to be on another mesh; under ``jit`` on automatic
            axes neither is. From ``update``, where an update and its parameter differ
            in shape.

    References:
        Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion
        Parameter Models (2020), section 5.1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.sharding import zero1
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> tx = zero1(rmsprop(0.01), mesh)
        >>> params = {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(3)}
        >>> state = tx.init(params)
        >>> state.nu["kernel"].addressable_shards[0].data.shape
        (2, 4)
        >>> state.nu["bias"].shape  # 3 and 5 zeros
        (8,)
    """
    if axis not in mesh.shape:
        raise ValueError(
            f"axis must be one of the mesh's, {', '.join(map(repr, mesh.shape))}, but "
            f"it was {axis!r}."
        )
    tx = optax.with_extra_args_support(tx)
    number = mesh.shape[axis]

    def placed(x, *spec):
        # Where a type says the mesh, as in `state_shardings`, it is that one.
        typed = jax.typeof(x).sharding.mesh
        here = typed if AxisType.Explicit in typed.axis_types else mesh
        sharding = NamedSharding(here, PartitionSpec(*spec))
        if AxisType.Explicit in here.axis_types:
            return jax.sharding.reshard(x, sharding)
        return lax.with_sharding_constraint(x, sharding)

    def is_split(x):
        return jnp.size(x) > 1 and jnp.issubdtype(x.dtype, jnp.inexact)

    def can_be_split(shape, dimension):
        cut, length = _codes.block(shape) or (None, 1)
        whole = length if dimension == cut else 1
        return shape[dimension] % (number * whole) == 0

    def split(x):
        if not is_split(x):
            return x
        for dimension in range(x.ndim):
            if can_be_split(x.shape, dimension):
                return placed(x, *[None] * dimension, axis)
        ones = [1] * (x.ndim - 1)
        x = jnp.pad(jnp.ravel(x), (0, -x.size % number)).reshape(*ones, -1)
        return placed(x, *[None] * len(ones), axis)

    def whole(x, like):
        if not is_split(like):
            return x
        x = placed(x)
        padded = x.shape != like.shape
        return jnp.ravel(x)[: like.size].reshape(like.shape) if padded else x

    def init(params):
        for path, p in jax.tree_util.tree_leaves_with_path(params):
            # Under jit only the type says where it is, on explicit axes.
            known = jax.typeof(p) if isinstance(p, Tracer) else p
            sharding = getattr(known, "sharding", None)
            if sharding is not None and not sharding.is_fully_replicated:
                raise ValueError(
                    f"Leaf {_name(path)} of params must be replicated for zero1, but "
                    f"it was {_described(known)}. Where the parameters are split, so "
                    "is their state: leave zero1 out."
                )
            its_mesh = getattr(sharding, "mesh", mesh)
            if not its_mesh.empty and its_mesh.shape != mesh.shape:
                raise ValueError(
                    f"Leaf {_name(path)} of params must be on zero1's mesh, of "
                    f"{dict(mesh.shape)}, but it was on one of "
                    f"{dict(its_mesh.shape)}. Give zero1 the parameters' mesh."
                )
        return tx.init(jax.tree.map(split, params))

    def update(updates, state, params=None, **extra_args):
        def compare(path, u, p):
            if u is not None and jnp.shape(u) != jnp.shape(p):
                raise ValueError(
                    f"The update of leaf {_name(path)} must have its parameter's "
                    f"shape, {jnp.shape(p)}, but it was {jnp.shape(u)}."
                )

        if params is not None:
            jax.tree_util.tree_map_with_path(
                compare, updates, params, is_leaf=_checks.is_none
            )
        parts, state = tx.update(
            jax.tree.map(split, updates),
            state,
            # Said to be whole first, or XLA may keep them split from step to step; of
            # two constraints without a barrier between it would heed the last.
            jax.tree.map(
                lambda p: split(lax.optimization_barrier(whole(p, p))), params
            ),
            **extra_args,
        )
        return jax.tree.map(whole, parts, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def check(state: Any, expected: Any) -> None:
    """Raises where an array is not sharded as expected.

    Args:
        state: A tree of arrays, such as an optimizer's state; not under ``jit``.
        expected: A tree of shardings like it, such as `state_shardings` returns; the
            same parts on the same devices are the same.

    Raises:
        ValueError: Naming the leaves, where the trees differ or a leaf is elsewhere.
        TypeError: Where a leaf of ``expected`` is not a sharding.

    Example:
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
                f"Leaf {_name(path)} of expected must be a sharding, but it was "
                f"{sharding!r}. Make it with state_shardings(tx, params), or with "
                "NamedSharding(mesh, PartitionSpec(...))."
            )
    have, structure = jax.tree_util.tree_flatten_with_path(state)
    want, expected_structure = jax.tree_util.tree_flatten_with_path(expected)
    if structure != expected_structure:
        names = [_name(path) for path, _ in have]
        expected_names = [_name(path) for path, _ in want]
        odd = [f"leaf {x} is missing" for x in names if x not in expected_names]
        odd += [f"leaf {x} is unexpected" for x in expected_names if x not in names]
        odd = odd or [f"it was {expected_structure} where the state is {structure}"]
        raise ValueError(
            f"expected must be a tree of shardings like the state, but {_few(odd)}. "
            "Make it with state_shardings(tx, params), for the same tx and params."
        )
    wrong = []
    for (path, x), (_, sharding) in zip(have, want, strict=True):
        is_array = isinstance(getattr(x, "sharding", None), Sharding)
        if is_array and x.sharding.is_equivalent_to(sharding, x.ndim):
            continue
        must, was = _described(sharding), _described(x)
        if must == was and isinstance(sharding, NamedSharding):
            must, was = _in_full(sharding), _in_full(x.sharding)
        wrong.append(f"leaf {_name(path)} must be {must}, but it was {was}")
    if wrong:
        raise ValueError(
            f"The state is not sharded as expected: {_few(wrong)}. Make it with "
            "jax.jit(tx.init, out_shardings=expected), or move it there with "
            "jax.device_put(state, expected)."
        )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "the root"


def _few(sentences: list[str]) -> str:
    return "; ".join(sentences[:4]) + "; …" * (len(sentences) > 4)


def _in_full(sharding: Any) -> str:
    """A sharding with its memory and its devices, for an error."""
    devices = [device.id for device in sharding.mesh.devices.flat]
    return f"{_described(sharding)} in {sharding.memory_kind} of devices {devices}"


def _described(x: Any) -> str:
    """A sharding, or that of an array, for an error."""
    x = getattr(x, "sharding", x)
    if isinstance(x, NamedSharding):
        return f"{x.spec} over the mesh {dict(x.mesh.shape)}"
    return f"{x}" if isinstance(x, Sharding) else f"{type(x)} without one"
