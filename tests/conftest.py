"""Tests run with strict promotion, no rank promotion, and eight CPU devices."""

import importlib.util
import os
import warnings
from collections.abc import Generator

# On a machine with a GPU too, unless one asks for it. Scripts that tests start inherit.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what .ci/run asks for: what is skipped there was not tested."""
    parser.addoption("--fail-on-skip", action="store_true", help="a skip is a failure")


def pytest_configure(config: pytest.Config) -> None:
    """Import Paddle before TensorFlow, after which it would end the process."""
    if config.option.markexpr == "live" and importlib.util.find_spec("paddle"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("paddle")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where one is asked for."""
    report = yield
    if report.skipped and item.config.getoption("--fail-on-skip"):
        report.outcome, report.longrepr = "failed", f"skipped: {report.longrepr}"
    return report


@pytest.fixture
def x64():
    """float64 for the length of a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
