"""Describe a file of the torch family, and plan how to resume it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from rmsprop_jax._cli.lines import (
    Argument,
    Plan,
    select_trained,
    write_weights_only,
)
from rmsprop_jax._cli.report import (
    LOADS_WEIGHTS,
    NOT_RMSPROP,
    Optimizer,
    Parameter,
    Report,
    describe_setting,
    make_parameter,
    read_count,
    write_value,
)
from rmsprop_jax.checkpoints._convert.arrays import Value
from rmsprop_jax.checkpoints._convert.run import Settings
from rmsprop_jax.checkpoints._readers.source import Source, StoredArray
from rmsprop_jax.checkpoints._torch_family.locate import (
    Parts,
    StateDict,
    find_models,
    find_schedulers,
    find_state_dicts,
    find_trainable_names,
    split_state_dict,
)
from rmsprop_jax.checkpoints._torch_family.optimizers import (
    FOREIGN_SETTINGS,
    MOMENT_KEYS,
    REQUIRED_SETTINGS,
    SCHEDULER_TRACES,
    STABLE_BASELINES3,
    STEP,
    TIMM,
    TIMM_SETTINGS,
    TORCH,
    Buffers,
    OptimizerSpec,
)
from rmsprop_jax.checkpoints._torch_family.schedulers import (
    describe_unread_learning_rate,
)
from rmsprop_jax.checkpoints._torch_family.stable_baselines3 import (
    guess_names as guess_stable_baselines3_names,
)
from rmsprop_jax.checkpoints._torch_family.state_dict import (
    OptimizerState,
    read_state_dict,
)
from rmsprop_jax.checkpoints._torch_family.timm import guess_names as guess_timm_names
from rmsprop_jax.schedules._state_dict import Scheduler, read_scheduler

Weights: TypeAlias = Mapping[str, Value]
_MAX_CANDIDATES = 1000
# Other optimizers, by keys of their states. The first match counts.
_OTHERS: dict[frozenset[str], str] = {
    frozenset({"exp_avg", "exp_inf"}): "Adamax",
    frozenset({"exp_avg", "exp_avg_sq", "mu_product"}): "NAdam",
    frozenset({"exp_avg", "exp_avg_sq"}): "Adam",
    frozenset({"exp_avg"}): "Lion",
    frozenset({"square_avg", "acc_delta"}): "Adadelta",
    frozenset({"sum"}): "Adagrad",
    frozenset({"prev", "step_size"}): "Rprop",
    frozenset({"row_var", "col_var"}): "Adafactor",
}


def inspect_torch(path: str, what: str, framework: str, content: object) -> Report:
    """Describe a checkpoint of the torch family.

    Args:
        path: The file.
        what: What errors call it.
        framework: "torch" or "stable_baselines3".
        content: What its reader made of it.
    """
    report = Report(path, *_describe_format(path, framework, content))
    if isinstance(content, Mapping):
        report.epoch = _find_epoch(content)
    report.weights = {**find_models(content, ema=False)}
    report.averages = {**find_models(content, ema=True)}
    found = find_state_dicts(content)
    for place, state_dict in found.items():
        optimizer = _inspect_optimizer(
            path,
            what,
            framework,
            content,
            place if len(found) > 1 else "",
            state_dict,
            report.weights,
        )
        report.optimizers.append(optimizer)
    names = {optimizer.name for optimizer in report.optimizers}
    if TIMM.optimizer in names:
        report.framework = "timm"
    report.lines = "\n\n".join(x.plan.write() for x in report.optimizers if x.plan)
    if not found:
        report.notes.append("It holds no optimizer's state.")
        report.notes += [
            f"It holds the state of a scheduler ({where}), of which "
            "rmsprop_jax.schedules.from_torch makes a schedule."
            for where in find_schedulers(content)
        ]
    if not report.lines and len(report.weights) == 1:
        report.lines = write_weights_only(path)
    return report


def _describe_format(path: str, framework: str, content: object) -> tuple[str, str]:
    if Path(path).is_dir():
        return "torch.distributed.checkpoint", "PyTorch"
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    if framework == "stable_baselines3":
        return "a zip file of model.save", _join(
            "Stable-Baselines3", _read_version(path)
        )
    form = "torch.save" if is_zip else "torch.save, before PyTorch 1.6"
    version = None
    if isinstance(content, Mapping):
        version = content.get("pytorch-lightning_version")
    return form, _join("Lightning", version) if version else "PyTorch"


def _read_version(path: str) -> object:
    """Return the version that Stable-Baselines3 writes into its files, if any."""
    source, name = Source(Path(path)), "_stable_baselines3_version"
    if name not in source.members or source.members[name].file_size > 100:
        return None
    return source.read_member(name).decode(errors="replace").strip()


def _join(name: str, version: object) -> str:
    return f"{name} {version}" if isinstance(version, str) and version else name


def _is_map(content: object) -> bool:
    return isinstance(content, Mapping)


def _find_epoch(content: StateDict) -> int | None:
    for key in ("epoch", "epochs", "current_epoch"):
        if key in content and (count := read_count(content[key])) is not None:
            return count
    return None


def _inspect_optimizer(
    path: str,
    what: str,
    framework: str,
    content: object,
    place: str,
    state_dict: StateDict,
    models: Mapping[str, Weights],
) -> Optimizer:
    parts = split_state_dict(what, state_dict)
    name = _name_other(parts)
    if name:
        found = _describe_other(name, place, parts)
        found.notes.append(NOT_RMSPROP)
        if models:
            found.notes[-1] += f" {LOADS_WEIGHTS}"
        return found
    weights: list[Weights] = [*models.values()]
    if not place and len(weights) != 1:
        weights = []  # the functions take the weights of a single model
    specs = [TORCH, TIMM, STABLE_BASELINES3]
    if framework == "stable_baselines3":
        specs = [STABLE_BASELINES3, TIMM]
    if any(TIMM_SETTINGS & {*group} for group in parts.groups):
        specs = [TIMM]
    errors: list[str] = []
    for spec in specs:
        try:
            return _describe_rmsprop(
                path, what, content, place, state_dict, parts, weights, spec
            )
        except ValueError as error:
            errors.append(str(error))
    found = _describe_other(specs[0].optimizer, place, parts)
    found.notes = [f"It can't be resumed: {errors[0]}"]
    return found


def _name_other(parts: Parts) -> str:
    """Return the name of an optimizer, or an empty text if it may be RMSProp."""
    keys = {str(k) for x in parts.state.values() if _is_map(x) for k in x}
    settings = {str(key) for group in parts.groups for key in group}
    is_timm = bool(TIMM_SETTINGS & settings)
    foreign = {k for g in parts.groups for k in FOREIGN_SETTINGS if g.get(k) is True}
    known = {STEP, *MOMENT_KEYS.values()}
    if {*REQUIRED_SETTINGS} <= settings and keys <= known and (is_timm or not foreign):
        return ""
    if keys <= {STEP, "momentum_buffer"} and "nesterov" in settings:
        return "SGD"
    for signature, name in _OTHERS.items():
        if signature <= keys:
            if name == "Adam" and "decoupled_weight_decay" in foreign:
                return "AdamW"
            return name
    if "betas" in settings:
        return "Adam, or one of its kind"
    return f"one that is not RMSProp, with the state {sorted(keys)[:6]}"


def _describe_other(name: str, place: str, parts: Parts) -> Optimizer:
    """Describe an optimizer whose state can't be resumed, but shown."""
    found = Optimizer(name, place)
    for g, group in enumerate(parts.groups):
        _add_group(found, group)
        own = group.get("param_names")
        names: list[object] = own if isinstance(own, list) else []
        for n, i in enumerate(group["params"]):
            buffers = parts.state.get(i, {})
            if not _is_map(buffers):
                continue
            label = names[n] if n < len(names) else i
            found.parameters.append(_make_row(str(label), g, buffers))
            count = read_count(buffers.get(STEP))
            if count is not None:
                found.step_count = max(found.step_count or 0, count)
    return found


def _add_group(found: Optimizer, group: Settings) -> None:
    hidden = ("params", "param_names")
    found.groups.append(
        {str(k): describe_setting(v) for k, v in group.items() if k not in hidden}
    )
    found.counts.append(len(group["params"]))


def _make_row(name: str, group: int, buffers: Buffers) -> Parameter:
    arrays = {
        str(key): x
        for key, x in buffers.items()
        if key != STEP and isinstance(x, np.ndarray | StoredArray)
    }
    return make_parameter(name, group, arrays)


# --- RMSProp.


def _describe_rmsprop(
    path: str,
    what: str,
    content: object,
    place: str,
    state_dict: StateDict,
    parts: Parts,
    models: Sequence[Weights],
    wanted: OptimizerSpec,
) -> Optimizer:
    """Describe an optimizer of the wanted kind.

    Raises:
        ValueError: If it is of another kind.
    """
    names, comment, weights = _find_names(parts, models, wanted)
    is_given = names is not None
    if names is None and wanted is TIMM and weights:
        names = guess_timm_names(parts.groups, weights)
    elif names is None and wanted is STABLE_BASELINES3 and weights:
        names = guess_stable_baselines3_names(parts.groups, weights)
    state = read_state_dict(what, state_dict, wanted, names, weights)
    lost = [x.name for x in state.params if not x.buffers and x.weight is None]
    found = Optimizer(
        state.spec.optimizer,
        place,
        _write_dialect(state),
        state.step_count,
        content=state_dict,
    )
    for group in parts.groups:
        _add_group(found, group)
    for x in state.params:
        row = _make_row(x.name, x.group, x.buffers)
        if not x.buffers and x.weight is not None:
            row.shape = tuple(np.shape(x.weight))
        found.parameters.append(row)
    arguments: list[Argument] = []
    if is_given and names is not None:
        arguments.append(Argument("names", names, comment))
    comments: list[str] = []
    arguments += _resume_scheduler(what, content, place, state, found)
    own = [x.name for x in state.params]
    has_all = bool(weights) and {*own} <= {*weights}
    if lost:
        comments.append(
            f"Parameters {lost[:4]} never had a gradient, so the file does not tell "
            "their shapes: give names=dict(model.named_parameters())."
        )
    if wanted is STABLE_BASELINES3:
        comments.append(
            "The agent clips its gradients by max_grad_norm, which is not in the "
            "state: put optax.clip_by_global_norm in front."
        )
        if why := describe_unread_learning_rate(content):
            comments.append(
                f"{why[0].upper()}{why[1:]}. If so, give it as a function of the step "
                "count, learning_rate=schedule. Otherwise, the learning rate stays at "
                f"{state.groups[0].learning_rate}."
            )
    has_weights = has_all and not place
    found.plan = Plan(
        f"from_{wanted.framework}",
        path,
        place,
        arguments,
        select_trained(path, own, [*weights]) if has_weights else None,
        comments,
    )
    return found


def _write_dialect(state: OptimizerState) -> str:
    """Return the rule of the first group, as a call."""
    name = {
        "torch": "rmsprop",
        "timm": "dialects.timm",
        "stable_baselines3": "dialects.stable_baselines3",
    }[state.spec.framework]
    if len({repr(group.settings) for group in state.groups}) > 1:
        return f"{name}, with different settings in each group"
    group = state.groups[0]
    shown = {k: v for k, v in group.settings.items() if v not in (None, False)}
    is_one = all(x.learning_rate == group.learning_rate for x in state.groups)
    rate = write_value(group.learning_rate) if is_one else "…"
    arguments = [rate, *(f"{k}={write_value(v)}" for k, v in shown.items())]
    return f"{name}({', '.join(arguments)})"


def _find_names(
    parts: Parts, models: Sequence[Weights], wanted: OptimizerSpec
) -> tuple[list[str] | None, str, Weights]:
    """Return the names to pass, a comment on them, and the weights with these names.

    There are no names to pass if the file has them, or if the function finds them.
    """
    ids = [i for group in parts.groups for i in group["params"]]
    has_names = all(group.get("param_names") is not None for group in parts.groups)
    if has_names or (ids and all(isinstance(i, str) for i in ids)):
        own = [n for g in parts.groups for n in g.get("param_names") or g["params"]]
        fitting = [model for model in models if {*own} <= {*model}]
        return None, "", next(iter(fitting or models), {})
    for model in models:
        if wanted is TIMM and guess_timm_names(parts.groups, model):
            return None, "", model
        if wanted is STABLE_BASELINES3 and guess_stable_baselines3_names(
            parts.groups, model
        ):
            return None, "", model
    for model in models:
        names = match_names(parts, model)
        if names is not None:
            return (
                names,
                "Only these names fit the shapes if each group lists its parameters in "
                "the order of the model. If not, names of equal shape may be swapped. "
                "Compare them with your model's.",
                model,
            )
    return (
        [str(i) for i in ids],
        "The file has no names of the optimizer's parameters. These are its numbers "
        "for them: give the model's names in this order.",
        {},
    )


def match_names(parts: Parts, weights: Weights) -> list[str] | None:
    """Return the names of the parameters, if their shapes allow only one answer.

    Each group is assumed to hold a part of the model's parameters, in the model's
    order. So the model's weights are assigned to the groups one after the other, each
    to a group whose next parameter has its shape. If only one assignment exists, it is
    the answer.

    Args:
        parts: The optimizer's state_dict.
        weights: The weights of the model.
    """
    names = find_trainable_names(weights)
    queues = [
        [_get_shape(parts.state.get(i, {})) for i in group["params"]]
        for group in parts.groups
    ]
    if sum(map(len, queues)) != len(names):
        return None
    # For each possible progress of the groups, the assignments that lead to it.
    ways: dict[tuple[int, ...], list[list[int]]] = {tuple([0] * len(queues)): [[]]}
    for name in names:
        shape = tuple(np.shape(weights[name]))
        following: dict[tuple[int, ...], list[list[int]]] = {}
        for done, dealt in ways.items():
            for g, queue in enumerate(queues):
                if done[g] == len(queue) or queue[done[g]] not in (shape, None):
                    continue
                then = (*done[:g], done[g] + 1, *done[g + 1 :])
                more = [[*way, g] for way in dealt]
                # Two assignments already show that the answer is not unique.
                following[then] = (following.get(then, []) + more)[:2]
        if len(following) > _MAX_CANDIDATES:
            return None
        ways = following
    found = [way for dealt in ways.values() for way in dealt]
    if len(found) != 1:
        return None
    of_groups: list[list[str]] = [[] for _ in queues]
    for name, g in zip(names, found[0], strict=True):
        of_groups[g].append(name)
    return [name for of_group in of_groups for name in of_group]


def _get_shape(buffers: Buffers) -> tuple[int, ...] | None:
    nu = buffers.get(MOMENT_KEYS["nu"]) if _is_map(buffers) else None
    return None if nu is None else tuple(np.shape(nu))


# --- Schedulers.


def _resume_scheduler(
    what: str,
    content: object,
    place: str,
    state: OptimizerState,
    found: Optimizer,
) -> list[Argument]:
    """Return the arguments that resume the learning rate, and its description."""
    schedulers = find_schedulers(content)
    read = {
        where: _read_scheduler(what, where, state_dict, state.settings)
        for where, state_dict in schedulers.items()
    }
    for where, (scheduler, error) in read.items():
        found.schedulers.append(
            _describe_unread_scheduler(where, schedulers[where], error)
            if scheduler is None
            else f"{scheduler.name} in {where}, after {scheduler.last_epoch} steps: "
            + "; ".join({repr(x.learning_rate): None for x in scheduler.groups})
        )
    fits = [
        scheduler
        for scheduler, _ in read.values()
        if scheduler is not None and len(scheduler.groups) == len(state.groups)
    ]
    if len(read) == 1 and fits and not place and state.spec is not STABLE_BASELINES3:
        return _count_steps(fits[0], state.step_count)
    if read:
        reason = (
            "The scheduler can't be resumed from the file alone (see above). "
            if len(read) == 1
            else "The file has several schedulers: rmsprop_jax.schedules.from_torch "
            "makes the schedule of one. "
        )
        return _keep_constant(state, reason, is_scheduled=True)
    return _keep_constant(
        state,
        "A scheduler changed it, and the file does not have that scheduler. ",
        is_scheduled=False,
    )


def _describe_unread_scheduler(where: str, state_dict: StateDict, error: str) -> str:
    """Return why a scheduler can't be resumed, or what to pass in its place."""
    base_lrs = state_dict.get("base_lrs")
    is_lambda = "lr_lambdas" in state_dict and error.startswith("lambdas must be given")
    if not is_lambda or not isinstance(base_lrs, list) or not base_lrs:
        return f"{where}: {error}"
    base_lr = write_value(describe_setting(base_lrs[0]))
    return (
        f"a LambdaLR or a MultiplicativeLR in {where}. PyTorch does not store its "
        f"function, so pass it: learning_rate=schedules.lambda_lr({base_lr}, "
        "lr_lambda), or multiplicative_lr."
    )


def _read_scheduler(
    what: str, where: str, state_dict: StateDict, groups: Sequence[Settings]
) -> tuple[Scheduler | None, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # resuming the scheduler warns
        try:
            return read_scheduler(f"{where} of {what}", state_dict, groups), ""
        except ValueError as error:
            return None, str(error)


def _count_steps(scheduler: Scheduler, step_count: int) -> list[Argument]:
    """Return how the scheduler's steps follow from the updates, unless they are equal.

    See `rmsprop_jax.checkpoints._torch_family.schedulers`.
    """
    steps = scheduler.last_epoch
    resumes = Argument("learning_rate", "checkpoint")
    if steps == step_count:
        return [resumes]
    if steps > step_count:
        return [
            resumes,
            Argument(
                "offset",
                steps - step_count,
                f"The {scheduler.name} stepped {steps} times and the optimizer "
                f"{step_count}: GradScaler skipped the difference.",
            ),
        ]
    counts = (
        f"The {scheduler.name} stepped {steps} times and the optimizer {step_count}"
    )
    # So that step_count // per_step equals steps.
    smallest = step_count // (steps + 1) + 1
    largest = step_count // steps if steps else smallest
    if smallest > largest:
        comment = f"{counts}: it was made later."
        return [resumes, Argument("offset", steps - step_count, comment)]
    is_whole = steps > 0 and step_count % steps == 0
    comment = (
        f"{counts}: once per epoch of so many updates."
        if is_whole
        else (
            f"{counts}, once per epoch: give the updates of an epoch, at least "
            f"{smallest}."
        )
    )
    return [resumes, Argument("updates_per_step", largest, comment)]


def _keep_constant(
    state: OptimizerState, reason: str, *, is_scheduled: bool
) -> list[Argument]:
    """Return the last values of what a scheduler changed, as arguments."""
    arguments: list[Argument] = []
    for name, key in (("learning_rate", "lr"), ("momentum", "momentum")):
        is_traced = any(SCHEDULER_TRACES[key] in group for group in state.settings)
        if not is_traced and not (is_scheduled and key == "lr"):
            continue
        values = [
            group.learning_rate if key == "lr" else group.settings["momentum"]
            for group in state.groups
        ]
        arguments.append(
            Argument(
                name,
                values if any(x != values[0] for x in values) else values[0],
                f"{reason}This is its last value: give the schedule, a function of "
                "the step count.",
            )
        )
    return arguments
