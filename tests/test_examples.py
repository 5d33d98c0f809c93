"""Every script in examples/ runs as a user runs it, and trains what it says it does.

An example that takes more than a few seconds has ``--quick``; one without options does
not look at its arguments. One that draws writes the pictures that it names in the
current directory. One whose packages are not installed says how to ``pip install`` them
and exits with 0.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
# Not strict promotion: optax's own cosine schedule takes the minimum of an int32 count
# and a float.
ENVIRONMENT = {"JAX_NUMPY_RANK_PROMOTION": "raise", "PYTHONWARNINGS": "error"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_runs_as_a_script(path, tmp_path):
    done = subprocess.run(
        [sys.executable, path, "--quick"],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    if "pip install" in done.stdout:
        assert os.environ.get("RMSPROP_JAX_PEERS") != "required", done.stdout
        pytest.skip(done.stdout.strip())
    for name in re.findall(r"[\w-]+\.png", path.read_text(encoding="utf-8")):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["train_digits", "train_digits_nnx"])
def test_reaches_98_percent(name, tmp_path, monkeypatch):
    # The whole run, as the script does it without arguments.
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module(name)
    with jax.numpy_dtype_promotion("standard"):
        accuracy = example.main(["--out", str(tmp_path / "curves.png")])
    assert 0.98 <= accuracy <= 1
