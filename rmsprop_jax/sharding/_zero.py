"""ZeRO stage 1: the state is split over the devices that hold the same parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from rmsprop_jax._error_text import (
    Path,
    describe_sharding,
    path_str,
)
from rmsprop_jax._optimizer.tree_matching import is_none, require_transformation


def zero1(
    tx: optax.GradientTransformation, mesh: Mesh | AbstractMesh, axis: str = "data"
) -> optax.GradientTransformationExtraArgs:
    """ZeRO stage 1: every device stores and updates its own part of the state.

    Use it for parameters that are replicated, as in data parallelism. With N devices
    along the axis, each device updates 1/N of every leaf: XLA reduce-scatters the
    gradients (or all-reduces and slices them), and all-gathers the updates.

    A leaf is split along its first dimension that N divides. If there is none, its
    state has the shape ``(1, ..., 1, size)``, padded with zeros to a multiple of N, so
    the shapes of the state may depend on N. Scalars and integers are not split. The
    results are those without `zero1` up to rounding, because XLA may fuse the two
    programs differently.

    Args:
        tx: The whole chain. Its transformations must be elementwise, like `rmsprop`, or
            reduce by sums, like ``optax.clip_by_global_norm``. Functions that it calls
            with the parameters, such as masks, get leaves of the same rank, but
            possibly of another shape. Extra arguments reach it unchanged.
        mesh: The mesh that the parameters are on, concrete or abstract.
        axis: The name of the mesh axis to split over.

    Returns:
        A gradient transformation whose state is that of ``tx`` for the split leaves.

    Raises:
        ValueError: If the mesh does not have this axis. From ``init``, if a leaf is
            visibly not replicated or on another mesh (under ``jit`` with automatic
            axes, neither is visible). From ``update``, if an update and its parameter
            differ in shape.
        TypeError: If ``tx`` or ``mesh`` is of another type, as when they are swapped.

    References:
        Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion
        Parameter Models (2020), section 5.1.

    Examples:
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
    require_transformation(tx, "zero1(rmsprop(0.01), mesh)")
    if not hasattr(mesh, "axis_names"):
        raise TypeError(
            "mesh must be a jax.sharding.Mesh or AbstractMesh, such as "
            f"jax.make_mesh((8,), ('data',)), but it was {mesh!r}. Write "
            "zero1(rmsprop(0.01), mesh)."
        )
    if axis not in mesh.shape:
        raise ValueError(
            f"axis must be an axis of the mesh, {' or '.join(map(repr, mesh.shape))}, "
            f"but it was {axis!r}."
        )
    inner_tx = optax.with_extra_args_support(tx)

    def split_leaves(tree: optax.Params) -> optax.Params:
        return jax.tree.map(lambda x: split(x, mesh, axis), tree)

    def init(params: optax.Params) -> optax.OptState:
        for path, p in jax.tree.leaves_with_path(params):
            _check_replicated(path, p, mesh)
        return inner_tx.init(split_leaves(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is not None:
            jax.tree.map_with_path(_check_shape, updates, params, is_leaf=is_none)
        # Constrain to replicated first; otherwise XLA may keep the parameters split
        # across steps. Of two constraints without a barrier in between, XLA would heed
        # only the last.
        replicated = jax.tree.map(
            lambda p: lax.optimization_barrier(unsplit(p, p, mesh)), params
        )
        updates_in_parts, state = inner_tx.update(
            split_leaves(updates), state, split_leaves(replicated), **extra_args
        )
        return jax.tree.map(
            lambda x, like: unsplit(x, like, mesh), updates_in_parts, updates
        ), state

    return optax.GradientTransformationExtraArgs(init, update)


def split(x: jax.Array, mesh: Mesh | AbstractMesh, axis: str) -> jax.Array:
    """Split a leaf over the axis, reshaped and padded if no dimension is divisible."""
    if not _is_split(x):
        return x
    num_shards = mesh.shape[axis]
    for dimension, size in enumerate(x.shape):
        if size % num_shards == 0:
            return constrain(x, mesh, *[None] * dimension, axis)
    ones = [1] * (x.ndim - 1)
    padded = jnp.pad(jnp.ravel(x), (0, -x.size % num_shards)).reshape(*ones, -1)
    return constrain(padded, mesh, *[None] * len(ones), axis)


def unsplit(x: jax.Array, like: jax.Array, mesh: Mesh | AbstractMesh) -> jax.Array:
    """Replicate a split leaf, in the shape that it had before."""
    if not _is_split(like):
        return x
    x = constrain(x, mesh)
    is_padded = x.shape != like.shape
    return jnp.ravel(x)[: like.size].reshape(like.shape) if is_padded else x


def constrain(x: jax.Array, mesh: Mesh | AbstractMesh, *spec: str | None) -> jax.Array:
    """Constrain an array to a sharding on the mesh."""
    # If the array's type has a mesh, as in `state_shardings`, it is on that mesh.
    typed = jax.typeof(x).sharding.mesh
    is_typed = AxisType.Explicit in typed.axis_types
    sharding = NamedSharding(typed if is_typed else mesh, PartitionSpec(*spec))
    if AxisType.Explicit in sharding.mesh.axis_types:
        return jax.sharding.reshard(x, sharding)
    return lax.with_sharding_constraint(x, sharding)


def _is_split(x: jax.Array) -> bool:
    return jnp.size(x) > 1 and jnp.issubdtype(x.dtype, jnp.inexact)


def _check_replicated(path: Path, p: jax.Array, mesh: Mesh | AbstractMesh) -> None:
    # Under jit only the type says where an array is, and only with explicit axes.
    placed = jax.typeof(p) if isinstance(p, Tracer) else p
    sharding = getattr(placed, "sharding", None)
    if sharding is not None and not sharding.is_fully_replicated:
        raise ValueError(
            f"Leaf {path_str(path)} of params must be replicated for zero1, "
            f"but it was {describe_sharding(placed)}. The state of split parameters "
            "is split without zero1, so leave it out."
        )
    its_mesh = getattr(sharding, "mesh", mesh)
    if not its_mesh.empty and its_mesh.shape != mesh.shape:
        raise ValueError(
            f"Leaf {path_str(path)} of params must be on zero1's mesh, "
            f"{dict(mesh.shape)}, but it was on {dict(its_mesh.shape)}. Give zero1 the "
            "mesh of the parameters."
        )


def _check_shape(path: Path, u: jax.Array | None, p: jax.Array) -> None:
    if u is not None and jnp.shape(u) != jnp.shape(p):
        raise ValueError(
            f"The update of leaf {path_str(path)} must have its parameter's "
            f"shape, {jnp.shape(p)}, but it was {jnp.shape(u)}."
        )
