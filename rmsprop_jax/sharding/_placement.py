"""The shardings of a state, and the check that a state has them."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import jax
import optax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from rmsprop_jax._error_text import (
    describe_difference,
    describe_node_mismatch,
    describe_sharding,
    join_first,
    path_str,
)
from rmsprop_jax._optimizer.tree_matching import require_transformation

# A pytree of shardings, which has no type.
Shardings: TypeAlias = Any


def state_shardings(
    tx: optax.GradientTransformation,
    params: object,
    *,
    memory_kind: str | None = None,
) -> Shardings:
    """Return the shardings of ``tx.init(params)``, without computing the state.

    ``tx.init`` is traced with parameters whose types carry their shardings. Arrays that
    it makes like a parameter (``zeros_like``) get the parameter's sharding, and all
    others (counts, hyperparameters) are replicated. ``tx`` may be any transformation or
    chain.

    Args:
        tx: The transformation.
        params: The parameters: arrays, or ``jax.ShapeDtypeStruct`` with a ``sharding``.
            All of them must be on one mesh (concrete or abstract, with automatic or
            explicit axes), or on the same single device.
        memory_kind: The memory of all arrays except scalars, such as ``"pinned_host"``.
            If None, it is the memory that ``tx.init`` uses: the device's, or the host's
            if ``tx`` is the result of `offload`.

    Returns:
        A pytree like ``tx.init(params)`` with a sharding in place of every array, for
        ``jax.jit(tx.init, out_shardings=...)``, for `check_shardings`, or for restoring
        a checkpoint. The shardings are on the mesh of the parameters.

    Raises:
        ValueError: If a leaf has no sharding, if two leaves are on different meshes, if
            there are no leaves, if the devices have no memory of that kind, or if
            ``tx.init`` is vmapped over the parameters and over something that is not
            sharded like them.
        TypeError: If ``tx`` is not a gradient transformation.

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
    require_transformation(tx, "state_shardings(rmsprop(0.01), params)")
    common = common_mesh(params)
    try:
        avals, state = _trace_init(tx, params, common)
    except ValueError as error:
        if "vmap" not in str(error):
            raise
        raise ValueError(
            f"tx.init must vmap only over sharded parameters, but JAX raised: "
            f"{error} The state before the first step does not depend on the "
            "learning rates of a population, so write "
            "lambda params: jax.vmap(rmsprop(0.1).init)(params)."
        ) from error
    placed = [_place(aval, common, memory_kind) for aval in avals]
    return jax.tree.unflatten(jax.tree.structure(state), placed)


def _trace_init(
    tx: optax.GradientTransformation,
    params: object,
    common: Mesh | AbstractMesh | SingleDeviceSharding,
) -> tuple[list[Any], optax.OptState]:
    """Return the types of the arrays of ``tx.init(params)``, and their shapes."""
    context = contextlib.nullcontext()
    if not isinstance(common, SingleDeviceSharding):
        explicit_mesh = AbstractMesh(
            common.axis_sizes,
            common.axis_names,
            axis_types=(AxisType.Explicit,) * len(common.axis_names),
        )

        def with_explicit_type(p: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            assert isinstance(p.sharding, NamedSharding)
            sharding = NamedSharding(explicit_mesh, p.sharding.spec)
            return jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=sharding)

        params = jax.tree.map(with_explicit_type, params)
        # JAX 0.12 needs the mesh in the context. JAX 0.7 can't set an abstract mesh
        # there, but finds it in the arguments.
        if hasattr(jax.sharding, "use_abstract_mesh"):
            context = jax.sharding.use_abstract_mesh(explicit_mesh)
    with context:
        closed, state = jax.make_jaxpr(tx.init, return_shape=True)(params)
    return closed.out_avals, state


def _place(
    aval: Any,
    common: Mesh | AbstractMesh | SingleDeviceSharding,
    memory_kind: str | None,
) -> Sharding:
    """Return the sharding of an array of this type."""
    if isinstance(common, SingleDeviceSharding):
        sharding = common
    else:
        # An array that does not depend on the parameters, like a count, is on no mesh.
        spec = PartitionSpec() if aval.sharding.mesh.empty else aval.sharding.spec
        sharding = NamedSharding(common, spec)
    if aval.ndim == 0:
        return sharding
    space = getattr(aval, "memory_space", None)  # not in JAX 0.7.0
    if memory_kind is None and getattr(space, "name", None) == "Host":
        memory_kind = "pinned_host"
    return sharding if memory_kind is None else sharding.with_memory_kind(memory_kind)


def common_mesh(params: object) -> Mesh | AbstractMesh | SingleDeviceSharding:
    """Return the one mesh, or the one device, that all the parameters are on."""
    first, common = "", None
    for path, p in jax.tree.leaves_with_path(params):
        name = path_str(path)
        sharding = getattr(p, "sharding", None)
        if isinstance(sharding, NamedSharding):
            mesh = sharding.mesh
        elif isinstance(sharding, SingleDeviceSharding):
            mesh = sharding
        else:
            raise ValueError(
                f"Leaf {name} of params must have a NamedSharding, but it was "
                f"{describe_sharding(p)}. Put it on the mesh with "
                "jax.device_put(params, NamedSharding(mesh, PartitionSpec(...))), or "
                "give jax.ShapeDtypeStruct(shape, dtype, sharding=...) instead."
            )
        if common is None:
            first, common = name, mesh
        elif mesh != common:
            raise ValueError(
                f"The leaves of params must all be on one mesh, but leaf {first} is on "
                f"{common} and leaf {name} on {mesh}. Put them all on the same mesh "
                "with jax.device_put; a leaf that is not split has PartitionSpec()."
            )
    if common is None:
        raise ValueError(
            "params must have at least one leaf, because the state's mesh is taken "
            f"from it, but it was {params}."
        )
    return common


def check_shardings(state: optax.OptState, expected: Shardings) -> None:
    """Raise if an array is not sharded as expected.

    Args:
        state: A pytree of arrays, such as an optimizer's state; not under ``jit``.
        expected: A pytree of shardings like it, such as `state_shardings` returns. Two
            shardings are the same if they put the same parts on the same devices.

    Raises:
        ValueError: If the pytrees differ, or if a leaf is sharded otherwise. It names
            the leaves.
        TypeError: If a leaf of ``expected`` is not a sharding.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.sharding import check_shardings, state_shardings
        >>> mesh = jax.make_mesh((8,), ("data",))
        >>> rows = NamedSharding(mesh, PartitionSpec("data"))
        >>> params = jax.device_put(jnp.ones((16, 4)), rows)
        >>> tx = rmsprop(0.01)
        >>> state = tx.init(params)
        >>> check_shardings(state, state_shardings(tx, params))
        >>> replicated = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        >>> check_shardings(
        ...     replicated, state_shardings(tx, params)
        ... )  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: The state is not sharded as expected: leaf .nu must be ...
    """
    for path, sharding in jax.tree.leaves_with_path(expected):
        if not isinstance(sharding, Sharding):
            raise TypeError(
                f"Leaf {path_str(path)} of expected must be a sharding, but it was "
                f"{sharding!r}. Make it with state_shardings(tx, params), or with "
                "NamedSharding(mesh, PartitionSpec(...))."
            )
    have, structure = jax.tree.flatten_with_path(state)
    want, expected_structure = jax.tree.flatten_with_path(expected)
    if structure != expected_structure:
        odd = describe_difference(
            [path_str(path) for path, _ in want],
            [path_str(path) for path, _ in have],
        )
        odd = odd or describe_node_mismatch(expected_structure, structure)
        raise ValueError(
            f"expected must be a pytree of shardings with the structure of the state, "
            f"but {odd}. "
            "Make it with state_shardings(tx, params), for the same tx and params."
        )
    wrong = [
        f"leaf {path_str(path)} must be " + _describe_difference(x, sharding)
        for (path, x), (_, sharding) in zip(have, want, strict=True)
        if not _is_sharded_as(x, sharding)
    ]
    if wrong:
        raise ValueError(
            f"The state is not sharded as expected: {join_first(wrong)}. "
            "Make it with jax.jit(tx.init, out_shardings=expected), or move it there "
            "with jax.device_put(state, expected)."
        )


def _is_sharded_as(x: object, sharding: Sharding) -> bool:
    if not isinstance(x, jax.Array | jax.ShapeDtypeStruct) or x.sharding is None:
        return False
    return x.sharding.is_equivalent_to(sharding, x.ndim)


def _describe_difference(x: object, sharding: Sharding) -> str:
    must, was = (
        describe_sharding(sharding),
        describe_sharding(x),
    )
    if must == was:
        must = _describe_in_full(sharding)
        was = _describe_in_full(getattr(x, "sharding", None))
    return f"{must}, but it was {was}"


def _describe_in_full(sharding: object) -> str:
    """Describe a sharding with its memory and its devices."""
    text = describe_sharding(sharding)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.devices is None:
        return text
    devices = [device.id for device in sharding.mesh.devices.flat]
    return f"{text} in {sharding.memory_kind} of devices {devices}"
