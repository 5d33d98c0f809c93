"""The state of TensorFlow's optimizers into ours, from the files of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import optax

from rmsprop_jax.checkpoints._files import File, check_is_of, damaged
from rmsprop_jax.checkpoints._keras_state import (
    ACCUMULATION,
    Saved,
    chosen,
    given,
    resumed,
)
from rmsprop_jax.checkpoints._tensorflow_bundle import OBJECTS, read
from rmsprop_jax.checkpoints._tensorflow_objects import Node, objects
from rmsprop_jax.checkpoints._tensorflow_slots import (
    SLOT,
    STEP,
    Arrays,
    of_keys,
    of_objects,
    weights_of_objects,
)

_AVERAGE = "/ExponentialMovingAverage"


def from_tensorflow(
    prefix: File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
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
    gradient_accumulation_steps: int | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where TensorFlow stopped.

    TensorFlow is not needed. A checkpoint holds few settings. What it lacks must be
    given, under the names of the dialect; an error says what.

    Args:
        prefix: What the names of the files begin with, as
            ``tf.train.latest_checkpoint`` gives it: ``"run/model.ckpt-100"`` of
            ``run/model.ckpt-100.index``. Of a SavedModel it is
            ``"…/variables/variables"``.
        to_params: The function from the weights, NumPy arrays by name, to the model's
            parameters. It may rename, transpose, reshape, join, split and stack. It
            may not cast or compute. By default the parameters are a dictionary by
            TensorFlow's names (without ``:0``).
        names: Which of the variables, by their names. By default all that the
            optimizer has.
        optimizer: Which one, where a ``tf.train.Checkpoint`` has several: the name of
            its argument, such as ``"generator_optimizer"``.
        count: The number of updates so far, where a Saver's file has no
            ``global_step``.
        learning_rate: A number or a schedule. A schedule is a function of the count of
            updates. In place of the checkpoint's, where it has one.
        momentum: Likewise. Of Keras it is in no checkpoint, but for legacy optimizers.
        decay: As ``tf.compat.v1.train.RMSPropOptimizer`` was made with.
        rho: As an ``RMSprop`` of Keras was made with.
        epsilon: As the optimizer was made with. No checkpoint holds it.
        centered: Not needed, as the checkpoint shows it. It must not contradict it.
        weight_decay: As an ``RMSprop`` of Keras was made with, but for legacy ones; 0
            for none.
        gradient_accumulation_steps: As Keras 3's was made with, if it accumulates.

    Returns:
        ``(tx, opt_state)`` with `dialects.tensorflow`, `dialects.keras` or
        `dialects.keras_legacy`. The state is like that of ``tx.init(params)``. It is
        float32, or float64 where TensorFlow's is and x64 is enabled. With accumulated
        gradients ``tx`` is an ``optax.MultiSteps``.

    Raises:
        FileNotFoundError: Where there is none.
        ValueError: Where a file is damaged, or has no RMSProp, or several; where a
            setting is missing, or contradicts the checkpoint; where ``names`` or
            ``to_params`` do not fit it.

    Clips of the gradients are in no checkpoint: ``optax.chain(clip, tx)``, and
    ``(optax.EmptyState(), opt_state)``.

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
    user = given(
        learning_rate=learning_rate,
        momentum=momentum,
        decay=decay,
        rho=rho,
        epsilon=epsilon,
        centered=centered,
        weight_decay=weight_decay,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    saved = _saved(prefix, optimizer, count)
    if names is not None:
        saved = chosen(saved, names)
    accumulates = "accumulator" in saved.slots
    if accumulates != (ACCUMULATION in user):
        raise ValueError(
            f"{ACCUMULATION} must be {'given' if accumulates else 'left out'}, as "
            f"{saved.what} has {'accumulated' if accumulates else 'no accumulated'} "
            "gradients."
        )
    return resumed(saved, user, to_params)


def weights(prefix: File, *, ema: bool = False) -> dict[str, np.ndarray]:
    """The weights by their names; with `ema` the trainable ones' moving averages."""
    arrays, nodes = _read(prefix)
    if not ema:
        found = weights_of_objects(arrays, nodes) if nodes else _weights(arrays)
    elif nodes:
        saved = _saved(prefix, None, None)
        found = dict(zip(saved.names, saved.slots.get("average", []), strict=False))
    else:
        averages = (key for key in arrays if key.endswith(_AVERAGE))
        found = {key.removesuffix(_AVERAGE): arrays[key] for key in averages}
    if ema and not found:
        raise ValueError(
            f"ema must be False, as {str(prefix)!r} holds no averages of the weights."
        )
    return found


def _saved(prefix: File, optimizer: str | None, count: int | None) -> Saved:
    """What the checkpoint holds of the optimizer."""
    arrays, nodes = _read(prefix)
    what = repr(str(prefix))
    if not nodes and optimizer is not None:
        raise ValueError(
            f"optimizer must be left out, as {what} is a Saver's, which does not name "
            f"optimizers, but it was {optimizer!r}."
        )
    if not nodes:
        return of_keys(what, arrays, count)
    try:
        return of_objects(what, arrays, nodes, optimizer, count)
    except KeyError as error:
        raise damaged(f"{prefix}.index", f"it has no {error}") from error


def _read(prefix: File) -> tuple[Arrays, list[Node]]:
    """The tensors, and the objects if tf.train.Checkpoint wrote them."""
    if not Path(f"{prefix}.index").exists() and not Path(prefix).is_file():
        raise FileNotFoundError(
            f"prefix must be what the names of a checkpoint's files begin with, as "
            f"tf.train.latest_checkpoint(folder) gives it, but there is no "
            f"'{prefix}.index'."
        )
    check_is_of(prefix, "tensorflow")
    arrays = read(prefix)
    if OBJECTS not in arrays:
        return arrays, []
    try:
        return arrays, objects(arrays.pop(OBJECTS))
    except (IndexError, KeyError, ValueError) as error:
        raise damaged(f"{prefix}.index", error) from error


def _weights(arrays: Arrays) -> dict[str, np.ndarray]:
    """Of a Saver's: all but the slots, which are under their variable."""
    return {
        key: array
        for key, array in arrays.items()
        if key != STEP
        and not SLOT.fullmatch(key)
        and not key.endswith(_AVERAGE)
        and key.rpartition("/")[0] not in arrays
    }
