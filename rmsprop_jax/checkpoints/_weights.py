"""Load the weights that belong to an optimizer's state, from any framework's file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

import jax
import optax

from rmsprop_jax.checkpoints._convert.arrays import (
    NumpyArray,
    Value,
    to_numpy_exactly,
)
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.rearrangement import apply_function
from rmsprop_jax.checkpoints._convert.run import ToParams, place_tree
from rmsprop_jax.checkpoints._keras_family.keras import load_keras_weights
from rmsprop_jax.checkpoints._keras_family.tensorflow import load_tensorflow_weights
from rmsprop_jax.checkpoints._paddle import find_paddle_weights
from rmsprop_jax.checkpoints._readers import materialize, read_file
from rmsprop_jax.checkpoints._readers.source import File, explain_content_errors
from rmsprop_jax.checkpoints._torch_family.locate import StateDict, find_weights


@overload
def load_weights(
    checkpoint: StateDict | File,
    to_params: None = None,
    *,
    names: Sequence[str] | None = None,
    ema: bool = False,
    shardings: None = None,
) -> dict[str, NumpyArray]: ...


@overload
def load_weights(
    checkpoint: StateDict | File,
    to_params: None = None,
    *,
    names: Sequence[str] | None = None,
    ema: bool = False,
    shardings: Shardings,
) -> dict[str, jax.Array]: ...


@overload
def load_weights(
    checkpoint: StateDict | File,
    to_params: ToParams,
    *,
    names: Sequence[str] | None = None,
    ema: bool = False,
    shardings: Shardings | None = None,
) -> optax.Params: ...


def load_weights(
    checkpoint: StateDict | File,
    to_params: ToParams | None = None,
    *,
    names: Sequence[str] | None = None,
    ema: bool = False,
    shardings: Shardings | None = None,
) -> optax.Params:
    """Return the weights in a checkpoint, as the parameters of a JAX model.

    The framework is not needed, and nothing in the file is executed.

    Args:
        checkpoint: A file of torch, timm, Lightning, Stable-Baselines3, Paddle
            (``.pdparams``) or Keras; a folder of torch.distributed.checkpoint; the
            common prefix of TensorFlow's files; or a dictionary that `read`
            returned, whole or in part.
        to_params: The function from the weights, a dictionary of NumPy arrays by name,
            to the parameters of the JAX model, as in `from_torch`. With ``shardings``
            it must only rearrange. By default the parameters are that dictionary.
        names: ``[v.path for v in model.weights]``, only for Keras's ``.keras`` and
            ``.weights.h5``, which do not contain the names. With ``ema``, give those of
            ``model.trainable_variables``.
        ema: Whether to return the moving averages of the weights, if the file has them:
            timm's ``state_dict_ema``, or a part with ``ema`` in its name; those of
            Keras's ``use_ema``, which a ``.weights.h5`` does not show; those of
            tf.train.ExponentialMovingAverage.
        shardings: Where each parameter is put as it is read: a pytree of
            ``jax.sharding.Sharding`` like the parameters; one for all of them; or a
            function ``(path, shape) -> sharding``, as in `from_torch`. By default
            nothing is put on a device.

    Returns:
        What ``to_params`` makes of the weights: NumPy arrays in the dtypes that they
        have in the file, or JAX arrays if ``shardings`` are given. bfloat16 is
        ``jax.numpy.bfloat16``. Arrays that are not parameters, such as running means,
        are among the weights, too. Prefixes that wrappers add are removed from their
        names: torch.compile's ``_orig_mod.``, ``_checkpoint_wrapped_module.``, and the
        ``module.`` of DistributedDataParallel and AveragedModel.

    Raises:
        ValueError: If there are no weights, or those of several models; if the file is
            damaged or of another kind; if ``shardings`` have another structure, or
            do not divide an array; if, with ``shardings``, ``to_params`` computes.
        TypeError: If ``shardings`` are not shardings.
        FileNotFoundError: If there is no file.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import load_weights
        >>> checkpoint = {"model": {"module.bias": np.ones(2)}, "epoch": 7}
        >>> load_weights(checkpoint)
        {'bias': array([1., 1.])}
    """
    found = _find_weights(checkpoint, names, ema=ema)
    if shardings is not None:
        return place_tree(to_params, found, "weights", shardings, exact=True)
    weights = {name: to_numpy_exactly(value) for name, value in found.items()}
    return apply_function("to_params", to_params, weights)


def _find_weights(
    checkpoint: StateDict | File, names: Sequence[str] | None, *, ema: bool
) -> Mapping[str, Value]:
    framework, what = "", "checkpoint"
    content: Any = checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        what = repr(os.fspath(checkpoint))
        framework, content = read_file(checkpoint)
    if framework == "keras":
        return load_keras_weights(what, content, names, ema=ema)
    if names is not None:
        raise ValueError(f"names must be left out, because {what} holds the names.")
    if framework == "tensorflow":
        return load_tensorflow_weights(what, content, ema=ema)
    with explain_content_errors(what):
        if framework == "paddle":
            return find_paddle_weights(what, content)
        return find_weights(what, content, ema=ema)


def read(path: File) -> Any:
    """Return what a checkpoint file of torch, Stable-Baselines3 or Paddle holds.

    The framework is not needed, and nothing in the file is executed. You can pass the
    result, or a part of it, to the other functions of this module.

    Args:
        path: A file that ``torch.save`` or ``paddle.save`` wrote, a folder that
            torch.distributed.checkpoint wrote, or a zip file of Stable-Baselines3. For
            a file of Stable-Baselines3, the result is a dictionary with the content of
            each of its ``.pth`` files, and with the agent's settings as JSON
            (``"data"``).

    Returns:
        What was saved, with NumPy arrays in place of tensors, in the same dtypes
        (bfloat16 is ``jax.numpy.bfloat16``). An ``argparse.Namespace`` becomes a
        ``types.SimpleNamespace``. A value of any other class becomes a placeholder,
        which shows what it was and raises an error when it is used.

    Raises:
        ValueError: If it is another framework's file, or a damaged one.
        FileNotFoundError: If there is no file.

    Examples:
        Resume one of two optimizers in a checkpoint:

        >>> from rmsprop_jax.checkpoints import from_torch, read
        >>> def resume(path):
        ...     return from_torch(read(path)["optimizer_d"])
    """
    content = read_file(path, "torch", "stable_baselines3", "paddle").content
    with explain_content_errors(repr(os.fspath(path))):
        return materialize(content)
