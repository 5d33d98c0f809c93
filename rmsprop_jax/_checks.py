"""What users pass is checked here, once, and refused in sentences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop_jax import _codes, _errors

if TYPE_CHECKING:
    from rmsprop_jax._rule import Rule
    from rmsprop_jax._state import RMSPropState


def options(rule: Rule) -> Rule:
    """The rule with every number a Python float or a scalar array; raises on bad ones.

    Numbers are held to torch's conditions: finite and not negative. The values of
    arrays pass unread, as they may be traced.
    """
    checked = {
        name: _flag(name, getattr(rule, name))
        for name, default in rule._field_defaults.items()
        if isinstance(default, bool)
    }
    for name in ("alpha", "eps", "weight_decay", "momentum", "initial_scale"):
        checked[name] = _number(name, getattr(rule, name))
    if not callable(rule.learning_rate):
        checked["learning_rate"] = _number("learning_rate", rule.learning_rate)
    alpha = checked["alpha"]
    if rule.bias_correction and isinstance(alpha, float) and alpha >= 1:
        raise ValueError(
            f"alpha must be less than 1 with bias_correction, but it was {alpha}."
        )
    start = checked["initial_scale"]
    if rule.bias_correction and isinstance(start, float) and start != 0:
        raise ValueError(
            "initial_scale must be 0 with bias_correction, which forgets what the "
            f"second moment began with, but it was {start}."
        )
    checked["state_dtype"] = _state_dtype(rule.state_dtype)
    return rule._replace(**checked, seed=seed(rule.seed))


def _number(name: str, value: Any) -> Any:
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        if isinstance(value, np.complexfloating) or not 0 <= value < math.inf:
            raise ValueError(
                f"{name} must be a finite number, not negative, but it was {value}."
            )
        return float(value)
    if callable(value):
        raise TypeError(
            f"{name} must be a number or a scalar array, but it was the function "
            f"{value!r}. Only learning_rate takes a schedule; for one of {name} wrap "
            "the optimizer in optax.inject_hyperparams."
        )
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"{name} must be a number or a scalar array, but it was {value!r}."
        )
    if value.shape != () or not jnp.isrealobj(value):
        raise ValueError(
            f"{name} must be a number or a real scalar array, but it was an array of "
            f"shape {value.shape} and dtype {value.dtype}. For a value per model, map "
            "jax.vmap over the whole optimizer."
        )
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return jnp.asarray(value, None if floating else jnp.result_type(float))


def rate_of_schedule(value: Any) -> Any:
    """What a schedule returned: a scalar, whose value passes unread."""
    if jnp.shape(value) != ():
        raise ValueError(
            "learning_rate must be a schedule that returns a scalar, but it returned "
            f"an array of shape {jnp.shape(value)}."
        )
    return value if isinstance(value, float) else jnp.asarray(value)


def _state_dtype(value: Any) -> Any:
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype == jnp.float16:
        raise ValueError(
            "state_dtype can't be 'float16': the second moment is a square, and of "
            "squares float16 holds only those of gradients between 2e-4 and 256. "
            "'bfloat16' has as many bits, and the range of float32."
        )
    if dtype not in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.int8):
        raise ValueError(
            "state_dtype must be 'float32', 'float64', 'bfloat16' or 'int8', but it "
            f"was {value!r}."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            "state_dtype can't be 'float64' while JAX has no float64: set "
            "jax_enable_x64, or leave it at 'float32'."
        )
    return dtype


def seed(value: Any) -> Any:
    """A seed of 32 bits; raises on what is none. That of an array passes unread."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    is_scalar = isinstance(value, jax.Array) and value.shape == ()
    if is_scalar and jnp.issubdtype(value.dtype, jnp.integer):
        return jnp.asarray(value).astype(jnp.uint32)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(
            f"seed must be an integer or a scalar array of one, but it was {value!r}."
        )
    if not 0 <= value < 2**32:
        raise ValueError(f"seed must be from 0 to 4294967295, but it was {value}.")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(
            f"{name} must be True or False, but it was {value!r}. It decides how the "
            "state is made, so it can't be an array."
        )
    return bool(value)


def params_given(what: str, params: Any) -> None:
    """Raises where `update` was called without the parameters, which `what` needs."""
    if params is None:
        raise ValueError(
            f"params must be given, as {what} needs them, but it was None: call "
            "update(gradients, state, params)."
        )


def is_none(x: Any) -> bool:
    """For `is_leaf`, where None stands for an absent leaf rather than an empty tree."""
    return x is None


def _is_moment(x: Any) -> bool:
    return x is None or _codes.is_codes(x)


def matched(rule: Rule, updates: Any, state: RMSPropState, params: Any) -> Any:
    """Every leaf as (g, p, nu, mu, grad_mean), and the structure of the trees.

    What the rule does not use is None; p is there where the leaf decays, and where it
    is an integer. Raises ValueError, naming the leaf, where the gradients, the
    parameters, the mask and the state do not belong together.
    """
    named, structure = jax.tree_util.tree_flatten_with_path(
        state.nu, is_leaf=_is_moment
    )
    paths = [_errors.leaf(path) for path, _ in named]

    def leaves(what, tree):
        return _leaves(what, tree, structure, paths)

    nus = [nu for _, nu in named]
    gs = leaves("The tree of the gradients", updates)
    mus = ps = means = [None] * len(paths)
    decays = [False] * len(paths)
    if rule.has_momentum:
        mus = leaves("state.mu, which momentum needs,", state.mu)
    if rule.centered:
        means = leaves("state.grad_mean, which centered needs,", state.grad_mean)
    if rule.decays:
        params_given("weight decay", params)
        ps = leaves("The tree of params", params)
        decays = leaves("weight_decay_mask", _mask(rule.weight_decay_mask, params))
    elif jax.tree.structure(params, is_leaf=is_none) == structure:
        ps = jax.tree.leaves(params, is_leaf=is_none)

    matched = []
    for path, decay, g, p, nu, mu, mean in zip(
        paths, decays, gs, ps, nus, mus, means, strict=True
    ):
        if g is not None:
            _check_gradient(path, g, nu)
        if g is not None and nu is not None:
            if rule.has_momentum:
                _check_shape("state.mu", path, mu, nu)
            if rule.centered:
                _check_shape("state.grad_mean", path, mean, nu)
            if decay:
                _check_shape("params", path, p, nu)
        matched.append((g, p if decay or nu is None else None, nu, mu, mean))
    return matched, structure


def _leaves(what: str, tree: Any, structure: Any, paths: list[str]) -> list[Any]:
    """The leaves of a tree that must be like the state's second moment."""
    given, given_structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=_is_moment
    )
    if given_structure == structure:
        return [leaf for _, leaf in given]
    odd = _errors.difference([_errors.leaf(path) for path, _ in given], paths)
    odd = odd or f"it was {given_structure} where the parameters were {structure}"
    raise ValueError(
        f"{what} must be a tree like the parameters that init was given, but {odd}. "
        "If the model or the optimizer has changed, make a new state with init."
    )


def _mask(mask: Any, params: Any) -> Any:
    """A tree like params that says for each leaf whether it decays."""
    if callable(mask):
        mask = mask(params)
    elif mask is None:
        mask = True
    elif jax.tree_util.all_leaves([mask]) and not jax.tree_util.all_leaves([params]):
        raise ValueError(
            "weight_decay_mask must be a tree of booleans like the parameters, or a "
            f"function from them to one, but it was {mask}. optax.inject_hyperparams "
            "takes a function for a schedule: add static_args='weight_decay_mask'."
        )
    try:
        return jax.tree.map(
            lambda decays, under: jax.tree.map(
                lambda p: None if p is None else bool(decays), under, is_leaf=is_none
            ),
            mask,
            params,
        )
    except ValueError as error:
        raise ValueError(
            "weight_decay_mask must be a tree of booleans like the parameters, or a "
            f"prefix of it, or a function from them to one, but it was {mask}."
        ) from error


def _check_gradient(path: str, g: Any, nu: Any) -> None:
    dtype = g.dtype if hasattr(g, "dtype") else jnp.result_type(g)
    optimizable = jnp.issubdtype(dtype, jnp.inexact)
    if nu is None and optimizable:
        raise ValueError(
            f"The gradient of leaf {path} was {dtype}, but its parameter was an "
            "integer, a boolean or None when init saw it, so it has no state and "
            "can't be optimized. Make the parameter floating-point, or leave it out "
            "with optax.masked."
        )
    if nu is None:
        return
    if not optimizable or jnp.iscomplexobj(g) != jnp.iscomplexobj(nu):
        kind = "complex" if jnp.iscomplexobj(nu) else "real and floating-point"
        raise ValueError(
            f"The gradient of leaf {path} must be {kind}, as its parameter was when "
            f"init saw it, but it was {dtype}."
        )
    _check_shape("The gradients", path, g, nu)


def _check_shape(what: str, path: str, leaf: Any, nu: Any) -> None:
    shape = None if leaf is None else jnp.shape(leaf)
    if shape != nu.shape:
        raise ValueError(
            f"{what}: leaf {path} must have shape {nu.shape}, as its parameter had "
            f"when init saw it, but it was {'None' if shape is None else shape}."
        )
