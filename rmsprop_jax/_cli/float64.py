"""Use JAX in float64, for values that must not be rounded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator

import jax
import jax.numpy as jnp
import numpy as np


@contextlib.contextmanager
def use_float64() -> Generator[None]:
    """Compute in float64, on the CPU, and keep orbax from writing to stderr."""
    was_wide = jnp.result_type(float) == np.float64
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    jax.config.update("jax_enable_x64", True)
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(RuntimeError):  # if JAX is told to have no CPU
                cpu, *_ = jax.local_devices(backend="cpu")
                stack.enter_context(jax.default_device(cpu))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
            yield
    finally:
        jax.config.update("jax_enable_x64", was_wide)
        logger.setLevel(level)
