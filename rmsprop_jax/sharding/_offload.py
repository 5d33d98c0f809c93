"""Keep the state in the host's memory, with one leaf at a time on the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias, TypeGuard, TypeVar

import jax
import jax.extend.core as jex
import optax
from jax import lax

from rmsprop_jax._optimizer.tree_matching import require_transformation

_T = TypeVar("_T")
_Atom: TypeAlias = jex.Var | jex.Literal

# The most moments that a leaf may have. One operation may take all of them.
_MOMENTS = 4


def offload(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Keep the optimizer's state in the host's memory between steps.

    Use it for a state that does not fit on the device together with the model. All
    arrays of the state except scalars are kept in pinned host memory, with the sharding
    that they have without `offload`. Left to itself, XLA would copy all of them to the
    device at once. So ``update`` copies the arrays of one leaf, updates them and stores
    them in host memory before it copies those of the next leaf. An update takes at
    least as long as the bus between host and device needs for the state in both
    directions. The results are those of ``tx``.

    This saves memory if the transformations update leaf by leaf, as most of Optax's do.
    A transformation that takes all leaves in one operation, such as
    ``optax.apply_if_finite`` and ``optax.MultiSteps``, needs all of them on the device
    at once, and a warning says so. If ``optax.clip_by_global_norm`` comes after
    `rmsprop`, the updates of all leaves wait on the device, but their state does
    not.

    Args:
        tx: The whole chain, which may be the result of `zero1`. Its ``update`` must not
            be ``jax.jit(tx.update)``, which takes all leaves at once; use ``jax.jit``
            on the training step that calls the ``update`` of the result.

    Returns:
        A gradient transformation whose state is that of ``tx``, in host memory. On a
        CPU nothing is gained, because host and device have the same memory.

    Raises:
        NotImplementedError: If JAX is older than 0.10.2.
        TypeError: If ``tx`` is not a gradient transformation.

    Warns:
        UserWarning: From ``update``, if an operation takes more than four arrays of the
            state.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rmsprop_jax import rmsprop
        >>> from rmsprop_jax.sharding import offload
        >>> tx = offload(rmsprop(0.01, momentum=0.9))
        >>> params = {"kernel": jnp.ones((16, 4)), "bias": jnp.ones(4)}
        >>> state = tx.init(params)
        >>> state.nu["kernel"].sharding.memory_kind, state.count.sharding.memory_kind
        ('pinned_host', 'device')
    """
    require_transformation(tx, "offload(rmsprop(0.01))")
    if jax.__version_info__ < (0, 10, 2):
        raise NotImplementedError(
            "offload needs jax 0.10.2 or newer, because older versions can't compile "
            "sharded arrays in host memory for every device, but this is jax "
            f"{jax.__version__}."
        )
    inner_tx = optax.with_extra_args_support(tx)
    space = jax.memory.Space

    def to_device(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(
            lambda x: jax.device_put(x, space.Device) if x.ndim else x, state
        )

    def to_host(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(
            lambda x: jax.device_put(x, space.Host) if x.ndim else x, state
        )

    def init(params: optax.Params) -> optax.OptState:
        return to_host(inner_tx.init(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        def update_all_at_once(
            updates: optax.Updates, state: optax.OptState, params: optax.Params | None
        ) -> tuple[optax.Updates, optax.OptState]:
            state = to_device(state)
            updates, state = inner_tx.update(updates, state, params, **extra_args)
            return updates, to_host(state)

        return _run_leaf_by_leaf(update_all_at_once, updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def _run_leaf_by_leaf(function: Callable[..., _T], *arguments: object) -> _T:
    """Call a function so that few of the host's arrays are on the device at once.

    The function is traced. Each operation runs only when an output needs it, and an
    array that goes to the host is moved as soon as it is computed. An array that comes
    from the host waits behind a barrier until the earlier ones have been moved there.
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr = closed.jaxpr
    unnamed = jaxpr.debug_info.with_unknown_names()
    makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    to_host = {
        eqn.invars[0]: eqn
        for eqn in jaxpr.eqns
        if _is_transfer(eqn) and eqn.outvars[0] in {*jaxpr.outvars}
    }
    values: dict[jex.Var, jax.Array] = {
        **dict(zip(jaxpr.constvars, closed.consts, strict=True)),
        **dict(zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True)),
    }
    brought: set[_Atom] = set()
    stored: list[jax.Array] = []  # since the last array was brought
    awaited: list[jax.Array] = []

    def run(eqn: jex.JaxprEqn) -> None:
        operands = [*dict.fromkeys(v for v in eqn.invars if _is_var(v))]
        inputs = [values[var] for var in operands]
        if _is_transfer(eqn) and eqn.invars[0] in {*jaxpr.invars}:
            if stored:
                awaited[:] = stored
                stored.clear()
            inputs, _ = lax.optimization_barrier((inputs, [*awaited]))
            brought.update(eqn.outvars)
        else:
            _warn_if_many(eqn, len(brought.intersection(operands)))
        alone = jex.Jaxpr((), operands, eqn.outvars, [eqn], eqn.effects, unnamed)
        made = jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*inputs)
        values.update(zip(eqn.outvars, made, strict=True))
        for var in eqn.outvars:
            if var in to_host:
                run(to_host[var])
                stored.extend((values[var], values[to_host[var].outvars[0]]))

    needed: list[_Atom] = [*reversed(jaxpr.outvars)]
    while needed:
        atom = needed[-1]
        if not _is_var(atom) or atom in values:
            needed.pop()
            continue
        missing = [v for v in makers[atom].invars if _is_var(v) and v not in values]
        if missing:
            needed.extend(reversed(missing))
        else:
            run(makers[atom])
    results = [values[v] if _is_var(v) else v.val for v in jaxpr.outvars]
    return jax.tree.unflatten(jax.tree.structure(outputs), results)


def _is_transfer(eqn: jex.JaxprEqn) -> bool:
    return eqn.primitive.name == "device_put"


def _is_var(atom: _Atom) -> TypeGuard[jex.Var]:
    return not isinstance(atom, jex.Literal)


def _warn_if_many(eqn: jex.JaxprEqn, number: int) -> None:
    if number > _MOMENTS:
        warnings.warn(
            f"offload has {number} arrays of the state on the device at once, because "
            f"tx takes them in one {eqn.primitive.name}. Leave out the transformation "
            "that does so, such as optax.apply_if_finite or optax.MultiSteps, and "
            "don't use jax.jit(tx.update) as the update of tx.",
            stacklevel=2,
        )
