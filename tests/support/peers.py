"""The real frameworks, where they are installed."""

import os
from importlib import metadata

import pytest


def need(*packages):
    """Skips a test where a package is missing.

    Where the environment variable RMSPROP_JAX_PEERS is "required", it fails.
    """
    for package in packages:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            required = os.environ.get("RMSPROP_JAX_PEERS") == "required"
            (pytest.fail if required else pytest.skip)(f"{package} is not installed")
