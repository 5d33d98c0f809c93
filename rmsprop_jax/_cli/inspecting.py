"""``rmsprop-jax inspect``: show what is in a file, and how to resume it."""

from __future__ import annotations

import os
from pathlib import Path

from rmsprop_jax._cli.keras_files import inspect_keras, inspect_tensorflow
from rmsprop_jax._cli.paddle_files import inspect_paddle
from rmsprop_jax._cli.report import Report, compute_statistics
from rmsprop_jax._cli.torch_files import inspect_torch
from rmsprop_jax.checkpoints._readers import read_file
from rmsprop_jax.checkpoints._readers.distributed import METADATA
from rmsprop_jax.checkpoints._readers.source import explain_content_errors


def make_report(path: str, *, has_statistics: bool = False) -> Report:
    """Return what a checkpoint holds. Its tensors are not read, only their headers.

    Args:
        path: The file, or the common prefix of TensorFlow's files.
        has_statistics: Whether to read the moments, one at a time.

    Raises:
        ImportError: If the package that reads the format is missing.
        OSError: If there is no such file, or it can't be opened.
        ValueError: If it can't be read.
    """
    if Path(path).name == METADATA:
        path = os.fspath(Path(path).parent)
    framework, content = read_file(path)
    what = repr(path)
    with explain_content_errors(what):
        if framework == "keras":
            report = inspect_keras(path, what, content)
        elif framework == "tensorflow":
            report = inspect_tensorflow(path, what, content)
        elif framework == "paddle":
            report = inspect_paddle(path, what, content)
        else:
            report = inspect_torch(path, what, framework, content)
        if has_statistics:
            for optimizer in report.optimizers:
                compute_statistics(optimizer.parameters)
    return report
