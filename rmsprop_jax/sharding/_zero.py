"""ZeRO stage 1: the state in parts, one on each device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rmsprop_jax import _errors, _trees


def zero1(
    tx: optax.GradientTransformation, mesh: jax.sharding.Mesh, axis: str = "data"
) -> optax.GradientTransformationExtraArgs:
    """ZeRO stage 1: every device keeps and updates its own part of the state.

    For parameters that are replicated, as in data parallelism. Of N devices along the
    axis each updates 1/N of every leaf, and then they share the updates: XLA scatters
    the gradients' sum (or slices it), and gathers the updates.

    A leaf is split along its first dimension that N divides. If there is none, its
    state is of shape ``(1, ..., 1, size)``, with zeros at the end up to a multiple of
    N; so the shapes of the state may differ with N. Scalars and integers are not split.
    The numbers are those of the unsplit run but for rounding, as XLA may fuse the two
    differently.

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

    def split(x):
        if not is_split(x):
            return x
        for dimension, size in enumerate(x.shape):
            if size % number == 0:
                return placed(x, *[None] * dimension, axis)
        ones = [1] * (x.ndim - 1)
        x = jnp.pad(jnp.ravel(x), (0, -x.size % number)).reshape(*ones, -1)
        return placed(x, *[None] * len(ones), axis)

    def in_parts(tree: optax.Params) -> optax.Params:
        return jax.tree.map(split, tree)

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
                    f"Leaf {_errors.leaf(path)} of params must be replicated for "
                    f"zero1, but it was {_errors.sharding(known)}. Where the "
                    "parameters are split, so is their state: leave zero1 out."
                )
            its_mesh = getattr(sharding, "mesh", mesh)
            if not its_mesh.empty and its_mesh.shape != mesh.shape:
                raise ValueError(
                    f"Leaf {_errors.leaf(path)} of params must be on zero1's mesh, of "
                    f"{dict(mesh.shape)}, but it was on one of "
                    f"{dict(its_mesh.shape)}. Give zero1 the parameters' mesh."
                )
        return tx.init(in_parts(params))

    def update(updates, state, params=None, **extra_args):
        def compare(path, u, p):
            if u is not None and jnp.shape(u) != jnp.shape(p):
                raise ValueError(
                    f"The update of leaf {_errors.leaf(path)} must have its "
                    f"parameter's shape, {jnp.shape(p)}, but it was {jnp.shape(u)}."
                )

        if params is not None:
            jax.tree_util.tree_map_with_path(
                compare, updates, params, is_leaf=_trees.is_none
            )
        # Said to be whole first, or XLA may keep them split from step to step; of two
        # constraints without a barrier between it would heed the last.
        params = jax.tree.map(lambda p: lax.optimization_barrier(whole(p, p)), params)
        parts, state = tx.update(
            in_parts(updates), state, in_parts(params), **extra_args
        )
        return jax.tree.map(whole, parts, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
