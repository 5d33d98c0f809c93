"""Read the state of TensorFlow's optimizers from the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import optax

from rmsprop_jax._optimizer.options import Mask
from rmsprop_jax.checkpoints._convert.arrays import Value
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import Run, ToParams
from rmsprop_jax.checkpoints._keras_family.bundle_slots import (
    find_object_weights,
    find_saver_averages,
    find_saver_weights,
    read_objects,
    read_saver,
)
from rmsprop_jax.checkpoints._keras_family.conversion import (
    ACCUMULATION,
    SavedOptimizer,
    clean_names,
    drop_none,
    make_keras_run,
    merge_settings,
    select_variables,
)
from rmsprop_jax.checkpoints._readers import find_prefixes, read_file
from rmsprop_jax.checkpoints._readers.source import File, explain_content_errors
from rmsprop_jax.checkpoints._readers.tensor_bundle import Bundle


def from_tensorflow(
    checkpoint: File,
    to_params: ToParams | None = None,
    *,
    names: Iterable[str] | None = None,
    optimizer: str | None = None,
    count: int | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    momentum: optax.ScalarOrSchedule | None = None,
    decay: float | None = None,
    rho: float | None = None,
    epsilon: float | None = None,
    centered: bool | None = None,
    weight_decay: float | None = None,
    weight_decay_mask: Mask | None = None,
    gradient_accumulation_steps: int | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Resume a run of one of TensorFlow's RMSProps in JAX.

    TensorFlow is not needed. A checkpoint holds few settings, so give the others under
    the names of the dialect; an error says which are missing.

    Args:
        checkpoint: The common prefix of its files, as ``tf.train.latest_checkpoint``
            returns it: ``"run/model.ckpt-100"`` for ``run/model.ckpt-100.index``. For a
            SavedModel it is ``"…/variables/variables"``.
        to_params: The function from the weights, NumPy arrays by name, to the
            parameters of the model. It may rename, transpose, reshape, join, split and
            stack, but must not cast, pad or compute. By default the parameters are a
            dictionary by TensorFlow's names (without ``:0``).
        names: The names of the variables to take, by default all that the optimizer
            has.
        optimizer: Which optimizer to take if a ``tf.train.Checkpoint`` has several: the
            name of its argument, such as ``"generator_optimizer"``.
        count: The step count, if a Saver's file has no ``global_step``.
        learning_rate: A number, or a schedule: a function of the step count. It
            replaces the checkpoint's learning rate, if there is one.
        momentum: As ``learning_rate``. Of Keras's optimizers, only the legacy ones
            store the momentum in a checkpoint.
        decay: What ``tf.compat.v1.train.RMSPropOptimizer`` was made with.
        rho: What an ``RMSprop`` of Keras was made with.
        epsilon: What the optimizer was made with. No checkpoint holds it.
        centered: Not needed, because the checkpoint shows it. If given, it must agree.
        weight_decay: What an ``RMSprop`` of Keras was made with, except for legacy
            ones; 0 for none.
        weight_decay_mask: Which variables decay, because no file says what
            ``exclude_from_weight_decay`` excluded: a dictionary of booleans by Keras's
            names, or a mask of the parameters as `rmsprop` takes it. ``True`` means
            that nothing was excluded.
        gradient_accumulation_steps: What an ``RMSprop`` of Keras 3 was made with, if it
            accumulates.
        shardings: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` with `dialects.tensorflow`, `dialects.keras` or
        `dialects.keras_legacy`. The state is like that of ``tx.init(params)``. It is
        float32, or float64 if TensorFlow's is and x64 is enabled. With accumulated
        gradients, ``tx`` is an ``optax.MultiSteps``.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ImportError: If google-crc32c is missing, which verifies the checksums.
        ValueError: If a file is damaged, or has no RMSProp, or several; if a setting is
            missing, or contradicts the checkpoint; if ``names`` or ``to_params`` do not
            fit it.

    No checkpoint holds gradient clipping: write ``optax.chain(clip, tx)``, whose state
    is ``(optax.EmptyState(), opt_state)``.

    Examples:
        >>> from rmsprop_jax.checkpoints import from_tensorflow
        >>> tx, state = from_tensorflow(  # doctest: +SKIP
        ...     "run/model.ckpt-100", learning_rate=0.01, decay=0.9, momentum=0.9,
        ...     epsilon=1e-10
        ... )

    References:
        TensorFlow 2.21, ``python/training/rmsprop.py`` and ``slot_creator.py``,
        ``python/checkpoint``; Keras 3.15.1 and tf_keras 2.21.
    """
    given = drop_none(
        learning_rate=learning_rate,
        momentum=momentum,
        decay=decay,
        rho=rho,
        epsilon=epsilon,
        centered=centered,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    cleaned = None if names is None else clean_names(names)
    bundle = _read_bundle(checkpoint)
    what = repr(str(checkpoint))
    with explain_content_errors(what):
        saved = _read_optimizer(what, bundle, optimizer, count)
        if cleaned is not None:
            saved = select_variables(saved, cleaned)
    accumulates = "accumulator" in saved.blocks
    if accumulates != (ACCUMULATION in given):
        raise ValueError(
            f"{ACCUMULATION} must be {'given' if accumulates else 'left out'}, because "
            f"{what} has {'accumulated' if accumulates else 'no accumulated'} "
            "gradients."
        )
    settings = merge_settings(what, saved.dialect, saved.settings, given)
    return make_keras_run(
        saved._replace(settings=settings), given, to_params, shardings
    )


def load_tensorflow_weights(
    what: str, bundle: Bundle, *, ema: bool
) -> Mapping[str, Value]:
    """Return the weights by their names, or the trainable ones' moving averages."""
    with explain_content_errors(what):
        if not ema:
            find = find_object_weights if bundle.nodes else find_saver_weights
            found = find(bundle)
        elif bundle.nodes:
            saved = _read_optimizer(what, bundle, None, None)
            averages = saved.blocks.get("average", [])
            found = dict(zip(saved.names, averages, strict=False))
        else:
            found = find_saver_averages(bundle)
        if ema and not found:
            raise ValueError(
                f"ema must be False, because {what} holds no averages of the weights."
            )
        return found


def _read_optimizer(
    what: str, bundle: Bundle, optimizer: str | None, count: int | None
) -> SavedOptimizer:
    if bundle.nodes:
        return read_objects(what, bundle, optimizer, count)
    if optimizer is not None:
        raise ValueError(
            f"optimizer must be left out, because {what} was written by a Saver, which "
            f"does not name optimizers, but it was {optimizer!r}."
        )
    return read_saver(what, bundle, count)


def _read_bundle(checkpoint: File) -> Bundle:
    if not Path(f"{checkpoint}.index").exists() and not Path(checkpoint).is_file():
        path = Path(checkpoint)
        folder, start = (path, "") if path.is_dir() else (path.parent, path.name)
        prefixes = find_prefixes(folder, start)
        there = f" There is {' or '.join(map(repr, prefixes))}." if prefixes else ""
        raise FileNotFoundError(
            "checkpoint must be the common prefix of its files, as "
            "tf.train.latest_checkpoint(folder) returns it, but there is no "
            f"'{checkpoint}.index'.{there}"
        )
    return read_file(checkpoint, "tensorflow").content
