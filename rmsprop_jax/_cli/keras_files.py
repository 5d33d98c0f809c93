"""Describe a file of Keras or TensorFlow, and plan how to resume it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rmsprop_jax._cli.lines import (
    Argument,
    Plan,
    Weights,
    write_weights_only,
)
from rmsprop_jax._cli.report import (
    LOADS_WEIGHTS,
    NOT_RMSPROP,
    Optimizer,
    Report,
    describe_setting,
    make_parameter,
    write_value,
)
from rmsprop_jax.checkpoints._convert.run import MOMENTS, Settings
from rmsprop_jax.checkpoints._keras_family.bundle_slots import (
    find_object_weights,
    find_optimizers,
    find_saver_averages,
    find_saver_weights,
    read_objects,
    read_saver,
)
from rmsprop_jax.checkpoints._keras_family.conversion import (
    ACCUMULATION,
    MASK,
    Dialect,
    SavedOptimizer,
)
from rmsprop_jax.checkpoints._keras_family.h5_optimizer import (
    is_untrained,
    parse_json,
    read_numbered_variables,
    read_optimizer,
    read_settings,
)
from rmsprop_jax.checkpoints._keras_family.h5_weights import (
    find_named_weights,
    find_numbered_weights,
    has_names,
    walk_layers,
)
from rmsprop_jax.checkpoints._readers.keras_h5 import (
    Config,
    KerasFile,
    get_config,
)
from rmsprop_jax.checkpoints._readers.source import StoredArray
from rmsprop_jax.checkpoints._readers.tensor_bundle import Bundle

Shape = tuple[int, ...]
_MAX_TRIES = 20_000
# The variables of Keras's own layers, by the names of their classes' groups.
_VARIABLES: dict[str, tuple[str, ...]] = {
    "dense": ("kernel", "bias"),
    "conv": ("kernel", "bias"),
    "embedding": ("embeddings",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "layer_normalization": ("gamma", "beta"),
    "group_normalization": ("gamma", "beta"),
}
_MOVING = ("moving_mean", "moving_variance")
_ASSUMED = "The file does not store these. The values are {}; replace them with yours."
_INFERRED = (
    "Inferred only from the optimizer's variables. Replace them with your settings."
)
_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")
# Values for arguments whose default in a dialect is missing or None.
_NUMBERS = {"learning_rate": 0.001, "momentum": 0.0, "weight_decay": 0.0}


class _Layer(NamedTuple):
    """A layer with variables, in a file without names."""

    kind: str
    name: str
    variables: list[str]
    shapes: list[Shape]
    trained: int


def inspect_keras(path: str, what: str, file: KerasFile) -> Report:
    """Describe a file of Keras.

    Args:
        path: The file.
        what: What errors call it.
        file: What its reader made of it.
    """
    root = file.root
    version = file.metadata.get("keras_version") or root.texts.get("keras_version")
    if not version and "model_weights" in root.groups:
        version = root.groups["model_weights"].texts.get("keras_version")
    form = ".keras" if file.config else ".h5" if has_names(root) else ".weights.h5"
    framework = f"Keras {version}" if isinstance(version, str) else "Keras"
    report = Report(path, form, framework)
    if has_names(root):
        report.weights = {"": find_named_weights(root)}
    else:
        arrays = {
            f"{group.path.removeprefix('/')}/{i}": array
            for _, group in walk_layers(root, file.config)
            for i, array in group.groups["vars"].arrays.items()
        }
        report.weights = {"": arrays} if arrays else {}
    config = _find_optimizer_config(what, file)
    is_rmsprop = _get_class_name(config) in ("", "RMSprop")
    if not is_rmsprop:
        found = _describe_other(_get_class_name(config), config)
        if report.weights:
            found.notes[-1] += f" {LOADS_WEIGHTS}"
        report.optimizers.append(found)
    elif config or "optimizer" in root.groups or "optimizer_weights" in root.groups:
        report.optimizers.append(_inspect_rmsprop(path, what, file, config, report))
    else:
        report.notes.append("It holds no optimizer's state.")
    plans = [x.plan for x in report.optimizers if x.plan]
    lines = plans[0].write() if plans else _write_weights(path, what, file)
    report.lines = lines
    return report


def _write_weights(path: str, what: str, file: KerasFile) -> str:
    """Return the lines that load only the weights; empty if there are none."""
    if has_names(file.root):
        return write_weights_only(path)
    names = [variable for layer in _list_layers(file) for variable in layer.variables]
    try:
        find_numbered_weights(what, file, names)
    except ValueError:
        return ""
    comment = (
        "The file has no names of the variables. These follow from its layers: compare "
        "them with [v.path for v in model.weights]."
    )
    return write_weights_only(path, names, comment) if names else ""


def _find_optimizer_config(what: str, file: KerasFile) -> Config:
    """Return the class and the settings of the optimizer; empty if it has none."""
    if has_names(file.root):
        text = file.root.texts.get("training_config")
        config = get_config(parse_json(what, text) if text else {}, "optimizer_config")
    else:
        config = get_config(get_config(file.config, "compile_config"), "optimizer")
    inner = get_config(get_config(config, "config"), "inner_optimizer")
    return inner or config


def _get_class_name(config: Config) -> str:
    return str(config.get("class_name", "")).rpartition(">")[2]


def _describe_other(name: str, config: Config) -> Optimizer:
    settings = {
        key: describe_setting(x) for key, x in get_config(config, "config").items()
    }
    return Optimizer(name, groups=[settings], counts=[0], notes=[NOT_RMSPROP])


def _inspect_rmsprop(
    path: str, what: str, file: KerasFile, config: Config, report: Report
) -> Optimizer:
    try:
        return _resume_rmsprop(path, what, file, config, report)
    except ValueError as error:
        note = f"It can't be resumed: {error}"
        if is_untrained(file.root):
            note = "The optimizer has not made a step, so there is no state to resume."
        found = Optimizer("Keras's RMSprop", notes=[note])
        settings = get_config(config, "config")
        found.groups = [{k: describe_setting(v) for k, v in settings.items()}]
        found.counts = [0]
        return found


def _resume_rmsprop(
    path: str, what: str, file: KerasFile, config: Config, report: Report
) -> Optimizer:
    dialect, own = read_settings(what, config)
    arguments: list[Argument] = []
    names: list[str] | None = None
    structure: Settings = {}
    layers: list[_Layer] = []
    if not has_names(file.root):
        variables = [x.shape for x in read_numbered_variables(what, file.root)]
        layers = list(_list_layers(file))
        names, structure, order = _guess_names(variables, layers, own)
        layers = order or layers
        comment = (
            "The file has no names of the variables. These follow from its layers: "
            "compare them with [v.path for v in model.trainable_variables]."
            if order
            else "The file has no names of the variables: give [v.path for v in "
            "model.trainable_variables] in place of these."
        )
        arguments.append(Argument("names", names, comment))
    given = _complete(dialect, own, structure, arguments)
    if not config and len(own) == 0:
        _drop_stored_rate(file, what, given, arguments)
    saved = read_optimizer(what, file, names, given)
    if saved.settings.get("use_ema") and saved.settings.get("ema_overwrite_frequency"):
        arguments.append(
            Argument(
                "use_ema",
                value=True,
                comment="Your loop must replace the weights by the averages every "
                f"{saved.settings['ema_overwrite_frequency']} updates, as Keras did.",
            )
        )
    _add_mask(saved, arguments)
    found = _describe(saved, "Keras's RMSprop", given)
    if "average" in saved.blocks and own:
        report.averages = {
            "": dict(zip(saved.names, saved.blocks["average"], strict=True))
        }
    found.plan = Plan(
        "from_keras",
        path,
        arguments=arguments,
        weights=_plan_weights(path, what, file, layers, names, saved),
    )
    return found


def _complete(
    dialect: Dialect, own: Settings, structure: Settings, arguments: list[Argument]
) -> Settings:
    """Return the settings that a file lacks, and add them to the arguments."""
    given: Settings = {}
    for name, parameter in inspect.signature(dialect).parameters.items():
        if name in own:
            continue
        default = parameter.default
        if default in (inspect.Parameter.empty, None):
            default = _NUMBERS[name]
        given[name] = structure.get(name, default)
    given |= {k: v for k, v in structure.items() if k not in own}
    # TensorFlow's optimizer has no default learning rate.
    is_keras = dialect.__name__ != "tensorflow"
    values = "Keras's defaults" if is_keras else "TensorFlow's defaults or placeholders"
    assumed = _ASSUMED.format(values)
    for name in sorted(given, key=lambda name: name in structure):
        comment = _INFERRED if name in structure else assumed
        arguments.append(Argument(name, given[name], comment))
    return given


def _drop_stored_rate(
    file: KerasFile, what: str, given: Settings, arguments: list[Argument]
) -> None:
    """Leave the learning rate out if it is among the variables."""
    shapes = [x.shape for x in read_numbered_variables(what, file.root)]
    if shapes[1:2] == [()] and shapes[2:3] != [()] and len(shapes) > 2:
        given.pop("learning_rate", None)
        arguments[:] = [x for x in arguments if x.name != "learning_rate"]


def _add_mask(saved: SavedOptimizer, arguments: list[Argument]) -> None:
    has_decay = "weight_decay" in inspect.signature(saved.dialect).parameters
    if has_decay and saved.settings.get("weight_decay"):
        arguments.append(
            Argument(
                MASK,
                value=True,
                comment="Nothing is excluded. If exclude_from_weight_decay excluded "
                "some, give a dictionary of booleans by these names.",
            )
        )


def _describe(saved: SavedOptimizer, name: str, assumed: Settings) -> Optimizer:
    """Describe an optimizer of Keras or TensorFlow, without the assumed settings."""
    settings = {
        key: repr(x) if callable(x) else describe_setting(x)
        for key, x in saved.settings.items()
        if key not in ("name", "jit_compile", "is_legacy_optimizer", *assumed)
    }
    every = saved.settings.get(ACCUMULATION) or 1
    found = Optimizer(
        name,
        dialect=_write_dialect(saved.dialect, settings),
        step_count=saved.iterations // every,
        groups=[settings],
        counts=[len(saved.names)],
    )
    rate = saved.settings.get("learning_rate")
    if callable(rate):
        found.schedulers.append(repr(rate) if "<" not in repr(rate) else "its own")
    for i, variable in enumerate(saved.names):
        moments = {
            saved.block_names.get(block, block): arrays[i]
            for block, arrays in saved.blocks.items()
            if block in MOMENTS
        }
        found.parameters.append(make_parameter(variable, 0, moments))
    return found


def _write_dialect(dialect: Dialect, settings: Settings) -> str:
    """Return the rule as a call, with the settings in the file."""
    name = f"dialects.{dialect.__name__}"
    known = {
        k: settings[k] for k in inspect.signature(dialect).parameters if settings.get(k)
    }
    clips = [f"{k}={write_value(settings[k])}" for k in _CLIPS if settings.get(k)]
    end = f", with {', '.join(clips)}" if clips else ""
    if not known:
        return f"{name}{end}"
    rate = write_value(known.pop("learning_rate", "learning_rate"))
    arguments = [rate, *(f"{k}={write_value(v)}" for k, v in known.items())]
    return f"{name}({', '.join(arguments)}){end}"


def _plan_weights(
    path: str,
    what: str,
    file: KerasFile,
    layers: Sequence[_Layer],
    names: Sequence[str] | None,
    saved: SavedOptimizer,
) -> Weights | None:
    trained = [*saved.names]
    if has_names(file.root):
        found = {*find_named_weights(file.root)}
        if not {*trained} <= found:
            return None
        return Weights(path, trained=None if found == {*trained} else trained)
    every = [variable for layer in layers for variable in layer.variables]
    try:
        find_numbered_weights(what, file, every)
    except ValueError:
        return None
    if not {*trained} <= {*every}:
        return None
    return Weights(path, every, trained=None if every == trained else trained)


# --- Names for numbered variables.


def _list_layers(file: KerasFile) -> Iterator[_Layer]:
    """Yield the layers with variables, in the order of the model's configuration."""
    root_name = get_config(file.config, "config").get("name")
    if "vars" in file.root.groups:
        root_name = root_name or file.root.groups["vars"].texts.get("name")
    for names, group in walk_layers(file.root, file.config):
        inner = names[1:] if names and root_name and names[0] == root_name else names
        arrays = group.groups["vars"].arrays
        places = sorted((x for x in arrays if x.isdecimal()), key=int)
        shapes = [arrays[x].shape for x in places if _is_float(arrays[x])]
        kind = group.path.rpartition("/")[2]
        own = inner or [x for x in group.path.split("/") if x and x != "layers"]
        known = next((v for k, v in _VARIABLES.items() if k in kind), ())
        labels = [
            known[i] if len(known) >= len(shapes) else str(i)
            for i in range(len(shapes))
        ]
        if "batch_normalization" in kind and len(shapes) < len(known):
            # Without a scale or a center.
            labels = [*known[: len(shapes) - 2], *_MOVING][: len(shapes)]
        if shapes:
            yield _Layer(
                kind,
                "/".join(own),
                ["/".join([*own, label]) for label in labels],
                shapes,
                sum(label not in _MOVING for label in labels),
            )


def _is_float(array: StoredArray) -> bool:
    return "float" in array.dtype.name


def _guess_names(
    variables: Sequence[Shape], layers: Sequence[_Layer], own: Settings
) -> tuple[list[str], Settings, list[_Layer]]:
    """Return names of the trainable variables, and which blocks of moments there are.

    The optimizer's variables repeat the shapes of the trainable ones, once for each
    block. The layers must have these shapes in some order.

    Returns:
        The names; the settings that follow from the number of blocks, if the file has
        none; the layers in the order that fits, or an empty list if no order fits.
    """
    start = 2 if variables[1:2] == [()] and variables[2:3] != [()] else 1
    shapes = [*variables[start:]]
    counts = [n for n in range(1, 6) if shapes and len(shapes) % n == 0]
    if own:
        expected = sum(
            (
                bool(own.get("use_ema")),
                bool(own.get(ACCUMULATION)),
                1,
                bool(own.get("momentum")),
                bool(own.get("centered")),
            )
        )
        counts = [expected] if expected in counts else []
    for count in counts:
        size = len(shapes) // count
        parts = [shapes[i * size : (i + 1) * size] for i in range(count)]
        if any(part != parts[0] for part in parts):
            continue
        order = _order_layers(parts[0], layers)
        if order or count == counts[-1] or own:
            names = [v for x in order for v in x.variables[: x.trained]]
            names = names or [f"variable_{i}" for i in range(size)]
            return names, {} if own else _describe_blocks(count), order
    raise ValueError(
        f"its optimizer has {len(variables)} variables, which are not those of an "
        "RMSprop: the iterations, perhaps the learning rate, and the same number of "
        "each of its moments."
    )


def _describe_blocks(count: int) -> Settings:
    """Return the likeliest settings of an optimizer with this many blocks."""
    settings: Settings = {"momentum": 0.9 if count > 1 else 0.0, "centered": count > 2}
    if count > 3:
        settings["use_ema"] = True
    if count > 4:
        settings[ACCUMULATION] = 2
    return settings


def _order_layers(shapes: Sequence[Shape], layers: Sequence[_Layer]) -> list[_Layer]:
    """Return the layers in an order in which their trained variables have the shapes.

    A layer without any of these shapes is frozen, and comes last.
    """
    tries = 0

    def search(start: int, rest: Sequence[int]) -> list[int] | None:
        nonlocal tries
        tries += 1
        if start == len(shapes):
            return []
        if tries > _MAX_TRIES:
            return None
        for n in rest:
            own = layers[n].shapes[: layers[n].trained]
            if own and [*shapes[start : start + len(own)]] == own:
                found = search(start + len(own), [x for x in rest if x != n])
                if found is not None:
                    return [n, *found]
        return None

    if len(layers) > 500:  # the search recurses once per layer
        return []
    found = search(0, range(len(layers)))
    if found is None:
        return []
    frozen = [n for n in range(len(layers)) if n not in found]
    return [
        *(layers[n] for n in found),
        *(layers[n]._replace(trained=0) for n in frozen),
    ]


# --- TensorFlow.


def inspect_tensorflow(path: str, what: str, bundle: Bundle) -> Report:
    """Describe a checkpoint of TensorFlow.

    Args:
        path: The common prefix of its files.
        what: What errors call it.
        bundle: What its reader made of it.
    """
    path = path.removesuffix(".index")
    form = "tf.train.Checkpoint" if bundle.nodes else "tf.compat.v1.train.Saver"
    report = Report(path, form, "TensorFlow")
    weights = (find_object_weights if bundle.nodes else find_saver_weights)(bundle)
    report.weights = {"": weights} if weights else {}
    averages = {} if bundle.nodes else find_saver_averages(bundle)
    report.averages = {"": averages} if averages else {}
    places = [*find_optimizers(bundle)] if bundle.nodes else [""]
    for place in places:
        chosen = place if len(places) > 1 else None
        try:
            report.optimizers.append(
                _inspect_bundle(path, what, bundle, chosen, weights)
            )
        except ValueError as error:
            if not bundle.nodes and not any("RMSProp" in key for key in bundle.arrays):
                continue
            report.notes.append(f"The optimizer {place!r} can't be resumed: {error}")
    if not report.optimizers and not report.notes:
        report.notes.append(_describe_other_bundle(bundle))
        if weights:
            report.notes[-1] += f" {LOADS_WEIGHTS}"
    plans = [x.plan.write() for x in report.optimizers if x.plan]
    report.lines = "\n\n".join(plans)
    if weights and not plans:
        report.lines = write_weights_only(path)
    return report


def _describe_other_bundle(bundle: Bundle) -> str:
    lists = [{*node.children} for node in bundle.nodes]
    slots = {slot.name for node in bundle.nodes for slot in node.slots}
    is_adam = (
        any({"_momentums", "_velocities"} <= x for x in lists)
        or {"m", "v"} <= slots
        or any(key.startswith("beta1_power") for key in bundle.arrays)
    )
    if is_adam:
        return (
            "Its optimizer is Adam, or one of its kind, so that its state can't be "
            "resumed here."
        )
    return "It holds no RMSProp's state."


def _inspect_bundle(
    path: str,
    what: str,
    bundle: Bundle,
    place: str | None,
    weights: Mapping[str, StoredArray],
) -> Optimizer:
    arguments: list[Argument] = []
    if place is not None:
        arguments.append(Argument("optimizer", place))

    def read(count: int | None) -> SavedOptimizer:
        if bundle.nodes:
            return read_objects(what, bundle, place, count)
        return read_saver(what, bundle, count)

    try:
        saved = read(None)
    except ValueError as error:
        if not str(error).startswith("count must be given"):
            raise
        saved = read(0)
        comment = "The file does not have it: give how many updates there were."
        arguments.append(Argument("count", 0, comment))
    structure: Settings = {}
    if "accumulator" in saved.blocks:
        structure[ACCUMULATION] = 2
    if "mu" in saved.blocks and "momentum" not in saved.settings:
        structure["momentum"] = 0.9
    given = _complete(saved.dialect, saved.settings, structure, arguments)
    name = (
        "tf.compat.v1.train.RMSPropOptimizer"
        if saved.dialect.__name__ == "tensorflow"
        else "Keras's RMSprop"
    )
    found = _describe(saved, name, given)
    trained = [*saved.names]
    is_own = len({*trained}) == len(trained) and {*trained} <= {*weights}
    loads = Weights(path, trained=None if {*weights} == {*trained} else trained)
    found.plan = Plan(
        "from_tensorflow",
        path,
        arguments=arguments,
        weights=loads if is_own else None,
    )
    return found
