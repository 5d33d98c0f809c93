"""Read the state of ``keras.optimizers.RMSprop`` from a file of Keras."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import optax

from rmsprop_jax._optimizer.options import Mask
from rmsprop_jax.checkpoints._convert.arrays import Value
from rmsprop_jax.checkpoints._convert.placement import Shardings
from rmsprop_jax.checkpoints._convert.run import Run, ToParams
from rmsprop_jax.checkpoints._keras_family.conversion import (
    clean_names,
    drop_none,
    make_keras_run,
)
from rmsprop_jax.checkpoints._keras_family.h5_optimizer import (
    missing_names_error,
    read_optimizer,
)
from rmsprop_jax.checkpoints._keras_family.h5_weights import (
    find_named_weights,
    find_numbered_weights,
    has_names,
)
from rmsprop_jax.checkpoints._readers import read_file
from rmsprop_jax.checkpoints._readers.keras_h5 import KerasFile
from rmsprop_jax.checkpoints._readers.source import File, explain_content_errors


def from_keras(
    checkpoint: File,
    to_params: ToParams | None = None,
    *,
    names: Iterable[str] | None = None,
    learning_rate: optax.ScalarOrSchedule | None = None,
    momentum: optax.ScalarOrSchedule | None = None,
    rho: float | None = None,
    epsilon: float | None = None,
    centered: bool | None = None,
    weight_decay: float | None = None,
    weight_decay_mask: Mask | None = None,
    use_ema: bool | None = None,
    gradient_accumulation_steps: int | None = None,
    shardings: Shardings | None = None,
) -> Run:
    """Resume a run of ``keras.optimizers.RMSprop`` in JAX.

    Keras is not needed, but h5py is.

    Args:
        checkpoint: A ``.keras``, ``.weights.h5`` or ``.h5`` that Keras 3, tf_keras, or
            tf.keras of TensorFlow 2 wrote. For tf_keras's legacy optimizers, only the
            ``.h5`` contains the state.
        to_params: The function from Keras's weights, NumPy arrays by name, to the
            parameters of the model. It may rename, transpose, reshape, join, split and
            stack, but must not cast, pad or compute. By default the parameters are a
            dictionary by Keras's names.
        names: ``[v.path for v in model.trainable_variables]`` (for tf_keras
            ``v.name``), in this order, which is the optimizer's. A ``.h5`` holds the
            names; then ``names`` selects variables, by default all.
        learning_rate: A number or a schedule in place of the file's. A schedule is a
            function of the step count, which continues from the file's. Keras's own
            schedules are in the file, but one that you wrote must be given.
        momentum: A number or a schedule in place of the file's.
        rho: What ``keras.optimizers.RMSprop`` was made with. A ``.weights.h5`` holds no
            settings, so for such a file give the momentum and the arguments from here
            to ``weight_decay``.
        epsilon: As ``rho``.
        centered: As ``rho``.
        weight_decay: As ``rho``; 0 for none.
        weight_decay_mask: Which variables decay, because no file says what
            ``exclude_from_weight_decay`` excluded: a dictionary of booleans by Keras's
            names, or a mask of the parameters as `rmsprop` takes it. ``True`` means
            that nothing was excluded.
        use_ema: As ``rho``; by default False. If the file has
            ``ema_overwrite_frequency``, it must be True, to confirm that your loop
            overwrites the weights.
        gradient_accumulation_steps: As ``rho``; by default none.
        shardings: As in `from_torch`.

    Returns:
        ``(tx, opt_state)`` with `dialects.keras` or `dialects.keras_legacy`. The state
        is like that of ``tx.init(params)``. It is float32, or float64 if Keras's is and
        x64 is enabled. With ``clipnorm``, ``global_clipnorm`` or ``clipvalue`` it is
        that of a chain, and with ``gradient_accumulation_steps`` that of an
        ``optax.MultiSteps``.

    Raises:
        ImportError: If h5py is missing.
        ValueError: If the file is damaged, or not one of Keras's RMSprop; if a setting
            is missing, or contradicts the file; if ``names`` or ``to_params`` do not
            fit it.

    With ``use_ema``, your training loop must compute the average, because an optimizer
    only sees gradients. Start with ``load_weights(checkpoint, ema=True)``, and after
    each update call ``average = optax.incremental_update(params, average, 1 -
    ema_momentum)``. A ``loss_scale_factor`` is not needed, because Keras divides the
    gradients by it before it applies the rule.

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
    given = drop_none(
        learning_rate=learning_rate,
        momentum=momentum,
        rho=rho,
        epsilon=epsilon,
        centered=centered,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        use_ema=use_ema,
        gradient_accumulation_steps=gradient_accumulation_steps,
    )
    what = repr(str(checkpoint))
    cleaned = None if names is None else clean_names(names)
    file: KerasFile = read_file(checkpoint, "keras").content
    with explain_content_errors(what):
        saved = read_optimizer(what, file, cleaned, given)
    every = saved.settings.get("ema_overwrite_frequency")
    if saved.settings.get("use_ema") and every and not use_ema:
        raise ValueError(
            f"use_ema must be True, to confirm that your loop replaces the weights by "
            f"the averages every {every} updates, as the optimizer of {what} did. "
            "(load_weights(checkpoint, ema=True) returns the averages.)"
        )
    return make_keras_run(saved, given, to_params, shardings)


def load_keras_weights(
    what: str, file: KerasFile, names: Iterable[str] | None, *, ema: bool
) -> Mapping[str, Value]:
    """Return the weights by their names, or the trainable ones' moving averages."""
    cleaned = None if names is None else clean_names(names)
    with explain_content_errors(what):
        found: Mapping[str, Value]
        if ema:
            found = _find_averages(what, file, cleaned)
        elif has_names(file.root):
            found = find_named_weights(file.root)
        elif cleaned is None:
            raise missing_names_error(what, "weights")
        else:
            found = find_numbered_weights(what, file, cleaned)
        return found


def _find_averages(
    what: str, file: KerasFile, names: list[str] | None
) -> Mapping[str, Value]:
    if not has_names(file.root) and not file.config:
        raise ValueError(
            f"ema must be False, because {what} does not say whether it holds "
            "averages. A .keras does."
        )
    saved = read_optimizer(what, file, names, {})
    if "average" not in saved.blocks:
        raise ValueError(
            f"ema must be False, because {what} holds no averages: its optimizer had "
            "use_ema=False."
        )
    return dict(zip(saved.names, saved.blocks["average"], strict=True))
