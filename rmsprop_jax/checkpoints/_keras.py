"""The state of ``keras.optimizers.RMSprop`` into ours, from a file of Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import optax

from rmsprop_jax.checkpoints._files import File
from rmsprop_jax.checkpoints._keras_files import is_numbered, opened
from rmsprop_jax.checkpoints._keras_optimizer import saved_of, unnamed
from rmsprop_jax.checkpoints._keras_state import given, listed, resumed
from rmsprop_jax.checkpoints._keras_weights import named_weights, numbered_weights


def from_keras(
    path: File,
    to_params: Callable[[dict[str, np.ndarray]], optax.Params] | None = None,
    *,
    names: Iterable[str] | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    momentum: optax.ScalarOrSchedule | None = None,
    rho: float | None = None,
    epsilon: float | None = None,
    centered: bool | None = None,
    weight_decay: float | None = None,
    use_ema: bool | None = None,
    gradient_accumulation_steps: int | None = None,
) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
    """The transformation and the state with which JAX goes on where Keras stopped.

    Keras is not needed, but h5py is.

    Args:
        path: A ``.keras``, ``.weights.h5`` or ``.h5`` that Keras 3, tf_keras, or
            tf.keras of TensorFlow 2 wrote. What tf_keras's legacy optimizers need is
            in their ``.h5`` alone.
        to_params: The function from Keras's weights, NumPy arrays by name, to the
            model's parameters. It may rename, transpose, reshape, join, split and
            stack. It may not cast or compute. By default the parameters are a
            dictionary by Keras's names.
        names: ``[v.path for v in model.trainable_variables]`` (of tf_keras ``v.name``),
            in this order, which is the optimizer's. A ``.h5`` has the names itself:
            there they say which of the variables, by default all.
        learning_rate: A number or a schedule in place of the file's. A schedule is a
            function of the count of updates, which starts at the file's. Keras's own
            schedules come from the file. One that you wrote must be given.
        momentum: A number or a schedule in place of the file's.
        rho: As ``keras.optimizers.RMSprop`` was made with. A ``.weights.h5`` holds no
            settings, so that there all from here on must be given, and momentum too.
        epsilon: Likewise.
        centered: Likewise.
        weight_decay: Likewise; 0 for none.
        use_ema: Likewise; by default False. With ``ema_overwrite_frequency`` it must be
            True for each file, so that nobody overlooks it.
        gradient_accumulation_steps: Likewise; by default none.

    Returns:
        ``(tx, opt_state)`` with `dialects.keras` or `dialects.keras_legacy`. The state
        is like that of ``tx.init(params)``. It is float32, or float64 where Keras's is
        and x64 is enabled. With ``clipnorm``, ``global_clipnorm`` or ``clipvalue`` it
        is that of a chain, and with ``gradient_accumulation_steps`` of an
        ``optax.MultiSteps``.

    Raises:
        ImportError: Where h5py is missing.
        ValueError: Where the file is damaged, or no file of Keras's RMSprop; where a
            setting is missing, or contradicts the file; where ``names`` or
            ``to_params`` do not fit it.

    What is left to the loop, as an optimizer only sees gradients: With ``use_ema``, the
    average, from ``weights(path, ema=True)`` on: ``average = optax.incremental_update(
    params, average, 1 - ema_momentum)`` after each update. A loss scale is not needed:
    the optimizer takes it out again before the rule.

    Keras does not save what ``exclude_from_weight_decay`` excluded.

    Examples:
        >>> import tempfile
        >>> import h5py, numpy as np
        >>> from rmsprop_jax.checkpoints import from_keras
        >>> path = f"{tempfile.mkdtemp()}/model.weights.h5"
        >>> with h5py.File(path, "w") as file:  # as Keras writes it after 7 steps
        ...     file["optimizer/vars/0"], file["optimizer/vars/1"] = 7, 0.5
        ...     file["optimizer/vars/2"] = np.array([3.0, 1.0], np.float32)
        >>> settings = dict(rho=0.75, momentum=0, epsilon=0, centered=False)
        >>> tx, state = from_keras(path, names=["bias"], **settings, weight_decay=0)
        >>> state.count, state.nu
        (Array(7, dtype=int32), {'bias': Array([3., 1.], dtype=float32)})

    References:
        Keras 3.15.1, ``keras/src/saving/saving_lib.py``, ``legacy_h5_format.py``, and
        ``optimizers/base_optimizer.py``; tf_keras 2.21.
    """
    user = given(
        learning_rate=learning_rate,
        momentum=momentum,
        rho=rho,
        epsilon=epsilon,
        centered=centered,
        weight_decay=weight_decay,
        use_ema=use_ema,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    with opened(path) as (file, config):
        saved = saved_of(repr(str(path)), file, config, names, user)
    every = saved.settings.get("ema_overwrite_frequency")
    if saved.settings.get("use_ema") and every and not use_ema:
        raise ValueError(
            f"use_ema must be True, to say that your loop takes the averages for the "
            f"weights every {every} updates, as the optimizer of {saved.what} did. "
            "(weights(path, ema=True) has the averages.)"
        )
    return resumed(saved, user, to_params)


def weights(
    path: File, names: Iterable[str] | None = None, *, ema: bool = False
) -> dict[str, np.ndarray]:
    """The weights by their names; with `ema` the trainable ones' moving averages."""
    what = repr(str(path))
    with opened(path) as (file, config):
        if ema and is_numbered(file) and not config:
            raise ValueError(
                f"ema must be False, as {what} does not say whether it holds averages. "
                "A .keras does."
            )
        if ema:
            saved = saved_of(what, file, config, names, {})
            if "average" not in saved.slots:
                raise ValueError(
                    f"ema must be False, as {what} holds no averages: its optimizer "
                    "had use_ema=False."
                )
            return dict(zip(saved.names, saved.slots["average"], strict=True))
        if not is_numbered(file):
            return named_weights(file)
        if names is None:
            raise unnamed(what, "weights")
        return numbered_weights(what, file, config, listed(names))
