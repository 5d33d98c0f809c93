"""``rmsprop-jax identify``: find the optimizer that made a recorded run."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmsprop_jax import Explanation, Match, identify
from rmsprop_jax._cli.float64 import use_float64
from rmsprop_jax._cli.recordings import Arrays, Recording, read_recording


def identify_recording(
    path: str, learning_rate: float | None, count: int | None
) -> tuple[Match, Recording]:
    """Return what made the recorded run, and the recording.

    Args:
        path: The recording.
        learning_rate: Replaces the recorded one.
        count: Replaces the recorded one.

    Raises:
        FileNotFoundError: If there is no file.
        TypeError: If an array does not hold numbers.
        ValueError: If it can't be read, or nothing can be learned from it.
    """
    recording = read_recording(path)
    if count is not None:
        recording = recording._replace(step_count=count)
    # A single array has no name; otherwise the answer would mention a leaf [''].
    trees = [
        next(iter(part.values())) if [*part] == [""] else part
        for part in (recording.params, recording.gradients)
    ]
    match = identify(
        *trees,
        learning_rate=recording.learning_rate
        if learning_rate is None
        else learning_rate,
        count=recording.step_count,
        gradient_norms=recording.gradient_norms,
    )
    return match, recording


def check_plotting(path: str) -> None:
    """Raise if no picture can be written, before the search, which takes seconds.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If matplotlib has no format for this suffix, or there is no folder.
    """
    try:
        importlib.import_module("matplotlib.figure")
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ImportError(
            "--plot needs matplotlib, which is missing: pip install matplotlib"
        ) from error
    suffixes = sorted(f".{x}" for x in FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix.lower() not in suffixes:
        raise ValueError(
            f"--plot must end in one of {', '.join(suffixes)}, but it was {path!r}."
        )
    if not Path(path).parent.is_dir():
        raise ValueError(
            f"--plot must be in an existing folder, but there is no folder "
            f"{str(Path(path).parent)!r}."
        )


def explain_missing_plot(match: Match, recording: Recording) -> str:
    """Return why a match can't be drawn; empty if it can."""
    if not match.explains:
        return "no RMSProp explains the run"
    if match.best.recipe.options is None:
        return "the best explanation is not an RMSProp"
    if recording.step_count:
        return "the recording begins in the middle of the run, with an unknown state"
    if match.best.recipe.leaf_norm is not None and recording.gradient_norms is not None:
        return "each leaf is clipped by its norm, but only a part of it is recorded"
    return ""


def draw(match: Match, recording: Recording, path: str) -> None:
    """Draw every observed update against what the rule makes, and the learning rates.

    Raises:
        ImportError: If matplotlib is missing.
        OSError: If the file can't be written.
    """
    from matplotlib.figure import Figure

    with use_float64():
        explained, observed = _compare(match.best, recording)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, updates in explained.items():
        label = name if name and len(explained) <= 8 else None
        left.plot(
            np.ravel(updates), np.ravel(observed[name]), ".", markersize=2, label=label
        )
    left.set(xlabel="update that the rule makes", ylabel="update that was observed")
    left.set_title("Every update of the recording", loc="left")
    if 1 < len(explained) <= 8:
        left.legend(markerscale=4)
    rates = match.best.learning_rates
    right.step(range(len(rates)), rates, where="mid")
    right.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    right.set_title("The learning rates that were found", loc="left")
    figure.savefig(path, dpi=130)


def _compare(best: Explanation, recording: Recording) -> tuple[Arrays, Arrays]:
    """Return the updates that the rule makes, and those that were observed."""
    params = {k: _widen(x) for k, x in recording.params.items()}
    gradients = {k: _widen(x) for k, x in recording.gradients.items()}
    moves = [
        np.any(np.diff(p, axis=0).reshape(len(p) - 1, -1), 1) for p in params.values()
    ]
    # Steps at which nothing moved were left out of the search as well.
    kept = np.flatnonzero(np.any(moves, axis=0))
    before = {k: p[kept] for k, p in params.items()}
    observed = {k: np.diff(p, axis=0)[kept] for k, p in params.items()}
    gradients = {k: g[kept] for k, g in gradients.items()}
    norms = recording.gradient_norms
    clip = best.recipe.before.get("clip_by_global_norm")
    if norms is not None and clip is not None:
        # The recorded elements are a part of the gradient that has this norm.
        scale = np.minimum(1, clip / np.maximum(norms[kept], 1e-300))
        gradients = {
            k: g * scale.reshape(-1, *[1] * (g.ndim - 1)) for k, g in gradients.items()
        }
        others = {
            k: x for k, x in best.recipe.before.items() if k != "clip_by_global_norm"
        }
        best = dataclasses.replace(best, recipe=best.recipe._replace(before=others))
    tx = best.transformation()
    is_single = [*params] == [""]

    def step(
        state: optax.OptState, now: tuple[optax.Updates, optax.Params]
    ) -> tuple[optax.OptState, optax.Updates]:
        updates, state = tx.update(now[0], state, now[1])
        return state, updates

    g_tree, p_tree = (x[""] if is_single else x for x in (gradients, before))
    state = tx.init(jax.tree.map(lambda x: jnp.asarray(x[0]), p_tree))
    updates = jax.tree.map(np.asarray, jax.lax.scan(step, state, (g_tree, p_tree))[1])
    return {"": updates} if is_single else updates, observed


def _widen(x: np.ndarray) -> np.ndarray:
    """Return an array in float64; two bytes without a name are bfloat16."""
    if x.dtype.kind == "V":
        x = x.view(jnp.bfloat16)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)
