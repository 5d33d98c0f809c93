"""The weights beside an optimizer's state, from the file of any framework."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop_jax.checkpoints import _keras, _paddle, _tensorflow
from rmsprop_jax.checkpoints._files import File, framework_of
from rmsprop_jax.checkpoints._pickles import opened
from rmsprop_jax.checkpoints._torch_layout import weights_in


def weights(
    checkpoint: Mapping[str, Any] | File,
    *,
    names: Sequence[str] | None = None,
    ema: bool = False,
) -> dict[str, np.ndarray]:
    """The weights in a checkpoint, by the names that ``to_params`` gets.

    The framework is not needed, and nothing in the file is executed.

    Args:
        checkpoint: A file of torch, timm, Lightning, Stable-Baselines3, Paddle
            (``.pdparams``) or Keras, or what TensorFlow's begin with (``prefix`` of
            `from_tensorflow`), or a dictionary that `read` made of one, whole or in
            part.
        names: Only for Keras's ``.keras`` and ``.weights.h5``, which do not hold them:
            ``[v.path for v in model.weights]``. With ``ema`` they are those of the
            ``trainable_variables``.
        ema: Whether to take the moving averages of the weights, where the file keeps
            them: timm's ``state_dict_ema``, or a part with ``ema`` in its name; those
            of Keras's ``use_ema``, of which a ``.weights.h5`` does not tell; those of
            tf.train.ExponentialMovingAverage.

    Returns:
        A dictionary of NumPy arrays in the dtypes that they have there. bfloat16 is
        ``jax.numpy.bfloat16``. What is no parameter, such as running means, is there
        too. The names are without what torch.compile and DistributedDataParallel add:
        ``_orig_mod.`` and ``module.``.

    Raises:
        ValueError: Where there is no weight, or those of several models; where the
            file is damaged or another one.
        FileNotFoundError: Where there is none.

    Examples:
        >>> import numpy as np
        >>> from rmsprop_jax.checkpoints import weights
        >>> checkpoint = {"model": {"module.bias": np.ones(2)}, "epoch": 7}
        >>> weights(checkpoint)
        {'bias': array([1., 1.])}
    """
    what = "checkpoint"
    if isinstance(checkpoint, str | os.PathLike):
        what = repr(os.fspath(checkpoint))
        framework = framework_of(checkpoint)
        if framework == "keras":
            return _keras.weights(checkpoint, names, ema=ema)
        if framework == "tensorflow":
            return _tensorflow.weights(checkpoint, ema=ema)
        if framework == "paddle":
            return _paddle.weights(checkpoint)
    if names is not None:
        raise ValueError(f"names must be left out, as {what} holds them itself.")
    return weights_in(what, opened(checkpoint, "torch", "stable_baselines3"), ema=ema)
