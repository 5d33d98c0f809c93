"""The real frameworks, where they are installed."""

import os
from importlib import metadata

import pytest
from recorded.frameworks import FRAMEWORKS


def need(name):
    """Skips a test whose framework is missing.

    Where the environment variable RMSPROP_JAX_PEERS is "required", it fails.
    """
    try:
        for package in FRAMEWORKS[name].packages:
            metadata.version(package)
    except metadata.PackageNotFoundError as missing:
        required = os.environ.get("RMSPROP_JAX_PEERS") == "required"
        (pytest.fail if required else pytest.skip)(f"{missing.name} is not installed")
