"""The state_dict of ``torch.optim.RMSprop`` into our state, and back.

torch is not needed here: its tensors are asked for their NumPy arrays, and make their
own kind again. What becomes what, for each parameter:

    square_avg        nu, as it is; centered, ν = E[g²] − m² and back, in float64
    momentum_buffer   mu, as it is: both keep the momentum before the rate
    grad_avg          grad_mean, as it is
    step              count: the most that any parameter has, as some may join late

The buffers lie in memory like the weights, so what carries the weights from torch's
layout to that of a JAX model, and does nothing but rearrange them, carries the buffers.

A state_dict may also be flat, as safetensors keeps it: the tensors under keys such as
``"state.0.square_avg"``, where 0 is the parameter's number in its group's ``params``,
and ``"param_groups"``, as a list or, from the file's metadata, as its JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import _errors, _layout, _torch_state_dict
from rmsprop_jax._optimizer import rmsprop
from rmsprop_jax._state import RMSPropState
from rmsprop_jax._torch_kinds import number, to_array
from rmsprop_jax._torch_state_dict import KEYS, Parameter, names_of

Names = Iterable[str] | Mapping[str, Any] | None


def from_torch(
    state_dict: Mapping[str, Any],
    to_params: Callable[[dict[str, np.ndarray]], Any] | None = None,
    *,
    names: Names = None,
    learning_rate: Any = None,
) -> tuple[optax.GradientTransformationExtraArgs, Any]:
    """The transformation and the state with which JAX goes on where torch stopped.

    Args:
        state_dict: ``torch.optim.RMSprop(...).state_dict()``, of tensors on any device
            or of NumPy arrays; or flat, as safetensors keeps it (see the module). That
            of Stable-Baselines3's RMSpropTFLike looks the same and is another rule.
        to_params: The function from torch's weights, NumPy arrays by name, to the
            model's parameters. It may rename, transpose, reshape, join, split and
            stack, but not cast or compute. By default the parameters are a dictionary
            by torch's names.
        names: torch's names of the parameters in the optimizer's order, which is that
            of ``model.named_parameters()`` if it was given ``model.parameters()``.
            By default the ``param_names`` of the groups, which torch writes since 2.6
            for an optimizer made from ``named_parameters()``. A dictionary from names
            to weights, ``dict(model.named_parameters())``, does as well; it is needed
            where a parameter never had a gradient, as only the weight knows its shape.
        learning_rate: A number or a schedule in place of the groups' ``lr``, or a list
            of one for each group. A schedule is evaluated at the count of steps, which
            goes on from the most that torch counts for any parameter.

    Returns:
        ``(tx, opt_state)``. With one group ``tx`` is an `rmsprop`; with several it is
        an ``optax.partition`` of one for each: ``"group_0"``, ``"group_1"`` and so on.
        The state is like that of ``tx.init(params)``: float32, or float64 where torch's
        is and x64 is enabled. It shares no memory with ``state_dict``.

    Raises:
        ValueError: Where the dictionary is not one of ``torch.optim.RMSprop``, lacks
            something, or does not tell enough; where ``names`` or ``to_params`` do not
            fit it, or parameters of different groups end up in one leaf.
        TypeError: Where ``names`` are not names.

    Example:
        >>> import numpy as np
        >>> from rmsprop_jax.torch_checkpoint import from_torch
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> buffers = {"step": 1, "square_avg": np.array([[2.25, 6.25, 0.0]])}
        >>> state_dict = {"state": {0: buffers}, "param_groups": [group]}
        >>> def to_params(weights):
        ...     return {"kernel": weights["weight"].T}
        >>> tx, state = from_torch(state_dict, to_params, names=["weight"])
        >>> state.count, state.nu["kernel"].shape
        (Array(1, dtype=int32), (3, 1))

    References:
        torch 2.13.0, ``torch/optim/rmsprop.py`` and ``Optimizer.state_dict``.
    """
    checkpoint = _torch_state_dict.read("state_dict", state_dict, names)
    parameters, groups = checkpoint.parameters, checkpoint.groups
    rates = _rates(groups, learning_rate)
    moments = [_torch_state_dict.moments(checkpoint, p) for p in parameters]

    def carried(arrays):
        weights = {p.name: x for p, x in zip(parameters, arrays, strict=True)}
        return _layout.apply("to_params", to_params, weights)

    labels = carried(
        [np.full_like(m["nu"], _layout.label(n)) for n, m in enumerate(moments)]
    )
    owners = _groups_of_leaves(labels, parameters, moments)

    def tree(field):
        if not any(checkpoint.needs(field, g) for g in range(len(groups))):
            return None
        made = carried([m[field] for m in moments])
        _layout.check_alike(labels, made, KEYS[field])
        return jax.tree.map(jnp.array, made)  # a copy: torch may go on with its own

    trees = {field: tree(field) for field in KEYS}
    rules, states = {}, {}
    for g, (settings, rate) in enumerate(zip(groups, rates, strict=True)):
        rules[f"group_{g}"] = rmsprop(
            rate,
            number(settings["alpha"]),
            number(settings["eps"]),
            number(settings["weight_decay"]),
            number(settings.get("momentum", 0)),
            bool(settings.get("centered", False)),
            maximize=bool(settings.get("maximize", False)),
        )
        kept = {f: t if checkpoint.needs(f, g) else None for f, t in trees.items()}
        if len(groups) > 1:
            kept = {f: _layout.masked(t, owners, g) for f, t in kept.items()}
        # An array of its own, as all of the state may be donated.
        count = jnp.array(checkpoint.steps(), jnp.int32)
        states[f"group_{g}"] = RMSPropState(count, **kept)
    if len(groups) == 1:
        return rules["group_0"], states["group_0"]
    structure = jax.tree.structure(labels)
    tx = optax.partition(rules, structure.unflatten(f"group_{g}" for g in owners))
    # `partition` has each group's transformation under `masked`.
    inner = {label: optax.MaskedState(state) for label, state in states.items()}
    return tx, optax.PartitionState(inner)


def to_torch(
    opt_state: Any,
    from_params: Callable[[Any], Mapping[str, Any]] | None = None,
    *,
    like: Mapping[str, Any],
    names: Names = None,
) -> dict[str, Any]:
    """The state_dict with which torch goes on where JAX stopped.

    Args:
        opt_state: An `RMSPropState`, or that of an ``optax.partition`` of `rmsprop`, as
            `from_torch` makes them. (The momentum of a dialect that holds the rate,
            such as Keras's, has another unit, which the state does not show.)
        from_params: The inverse of `from_torch`'s ``to_params``: from a tree like the
            parameters to a dictionary of arrays by torch's names. By default the
            parameters are such a dictionary.
        like: A state_dict of the optimizer that shall load it. Of it are the groups and
            their settings, ``lr`` among them, and of each buffer the kind (torch tensor
            or NumPy array), dtype and device. It is left as it is.
        names: As in `from_torch`, where ``like`` has no ``param_names``. For an
            optimizer that has not stepped yet, ``dict(model.named_parameters())``,
            whose tensors then say the kind.

    Returns:
        A new dictionary of the form of ``like``, which ``load_state_dict`` takes. Every
        ``step`` is that of ``like`` and the updates since, so that the most is our
        count. A parameter that has no state in ``like`` gets none as long as ours is
        all zeros, as torch has none before the first gradient.

    Raises:
        ValueError: Where ``like`` is not a state_dict of ``torch.optim.RMSprop``, has
            not the buffers that the state has, or where ``names`` or ``from_params`` do
            not fit it.
        TypeError: Where the state is another one, or ``names`` are not names.

    Example:
        >>> import numpy as np
        >>> from rmsprop_jax.torch_checkpoint import from_torch, to_torch
        >>> group = dict(lr=0.5, alpha=0.75, eps=0.0, weight_decay=0, params=[0])
        >>> buffers = {"step": 1, "square_avg": np.array([[2.25, 6.25, 0.0]])}
        >>> like = {"state": {0: buffers}, "param_groups": [group]}
        >>> tx, state = from_torch(like, names=["weight"])
        >>> gradients = {"weight": np.array([[0.5, 0.5, 1.0]], np.float32)}
        >>> _, state = tx.update(gradients, state)
        >>> to_torch(state, like=like, names=["weight"])["state"][0]
        {'step': 2, 'square_avg': array([[1.75, 4.75, 0.25]])}
    """
    checkpoint = _torch_state_dict.read("like", like, names)
    parts = _layout.groups_of(opt_state)
    wanted = [p.name for p in checkpoint.parameters]

    def carried(trees):
        made = _layout.apply("from_params", from_params, _layout.merged(trees))
        if not isinstance(made, Mapping) or set(made) != set(wanted):
            given = list(made) if isinstance(made, Mapping) else []
            odd = [f"{name!r} was missing" for name in wanted if name not in given]
            odd += [f"{name!r} was unexpected" for name in given if name not in wanted]
            raise ValueError(
                "from_params must return a dictionary by the names of the parameters "
                f"of like, but {'; '.join(odd[:4])}. (Without it, the parameters must "
                "be such a dictionary.)"
            )
        return made

    labels = carried(
        [
            jax.tree.map(
                partial(jnp.full_like, fill_value=_layout.label(n)),
                _layout.field_of(part, "nu"),
            )
            for n, part in enumerate(parts)
        ]
    )
    arrays = {
        field: carried([_layout.field_of(part, field) for part in parts])
        for field in KEYS
        if any(getattr(part, field) is not None for part in parts)
    }
    state = {}
    for p in checkpoint.parameters:
        found = _layout.labels_in(
            "from_params", repr(p.name), labels[p.name], len(parts)
        )
        if len(found) > 1:
            raise ValueError(
                f"from_params must keep the groups apart, but it made {p.name!r} of "
                f"leaves of {len(found)} groups."
            )
        part = parts[next(iter(found), min(p.group, len(parts) - 1))]
        for field, key in KEYS.items():
            needed = checkpoint.needs(field, p.group)
            if needed != (getattr(part, field) is not None):
                there, here = ("has a", "has no") if needed else ("has no", "has a")
                raise ValueError(
                    "like must be of an optimizer with the settings that the state was "
                    f"made with, but for {p.name!r} like {there} {key!r}, and the "
                    f"state {here} {field}: look at momentum and centered of group "
                    f"{p.group}."
                )
        buffers = {
            field: to_array(made[p.name])
            for field, made in arrays.items()
            if checkpoint.needs(field, p.group)
        }
        _check_shapes(p, buffers)
        if p.state or any(x.any() for x in buffers.values()):
            since = int(part.count) - checkpoint.steps()
            state[p.id] = _torch_state_dict.state_of(checkpoint, p, buffers, since)
    if checkpoint.is_flat:
        return _torch_state_dict.flattened(state, like["param_groups"])
    return {**like, "state": state, "param_groups": checkpoint.groups}


def _groups_of_leaves(
    labels: Any, parameters: Sequence[Parameter], moments: Sequence[Any]
) -> list[int]:
    """The group that each leaf of to_params is of, by the labels of its parameters."""
    groups, used = [], [0] * len(parameters)
    for path, leaf in jax.tree_util.tree_leaves_with_path(labels):
        where = f"leaf {_errors.leaf(path)}"
        found = _layout.labels_in("to_params", where, leaf, len(parameters))
        owners = [parameters[n] for n in sorted(found)]
        mixed = sorted({p.group for p in owners})
        if len(mixed) > 1:
            raise ValueError(
                "to_params must keep parameters of different groups apart, but its "
                f"{where} is made of {names_of(owners)}, of the groups {mixed}, which "
                "may differ in their settings. In torch, put them into one group first."
            )
        for n, times in found.items():
            used[n] += times
        groups.append(mixed[0] if mixed else 0)
    lost = [
        p
        for p, m, times in zip(parameters, moments, used, strict=True)
        if times < m["nu"].size
    ]
    if lost:
        raise ValueError(
            f"to_params must keep all of every parameter, but it left out (some of) "
            f"{names_of(lost)}, whose state would be lost. If whole parameters are "
            "meant to go, take them out of state_dict's state and its groups' 'params'."
        )
    return groups


def _rates(groups: list[dict[str, Any]], learning_rate: Any) -> list[Any]:
    """The rate of each group."""
    own = [number(group["lr"]) for group in groups]
    if learning_rate is None:
        return own
    if isinstance(learning_rate, list | tuple):
        if len(learning_rate) != len(groups):
            raise ValueError(
                f"learning_rate must have one rate for each of the {len(groups)} "
                f"groups, but it had {len(learning_rate)}."
            )
        return list(learning_rate)
    if len(set(own)) > 1:
        raise ValueError(
            "learning_rate must be a list of one rate or schedule for each group, as "
            f"the groups have rates of their own, {own}, which one for all would drop, "
            f"but it was {learning_rate!r}."
        )
    return [learning_rate] * len(groups)


def _check_shapes(p: Parameter, buffers: Mapping[str, Any]) -> None:
    """Raises where from_params made other shapes than like has."""
    like = p.weight if p.weight is not None else p.state.get(KEYS["nu"], buffers["nu"])
    for field, array in buffers.items():
        if array.shape != tuple(like.shape):
            raise ValueError(
                f"from_params must make the shapes that like has, but it made "
                f"{KEYS[field]!r} of {p.name!r} {array.shape} instead of "
                f"{tuple(like.shape)}."
            )
