"""Every script in examples/ and benchmarks/ runs as a user runs it.

The examples train what they say they train. A script that takes longer than these tests
should has ``--quick``. One that draws writes the pictures that it names in the current
directory. One whose packages are not installed says how to ``pip install`` them and
exits with 0.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Not strict promotion: optax's own cosine schedule takes the minimum of an int32 count
# and a float.
ENVIRONMENT = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "PYTHONWARNINGS": "error,ignore:__array__ implementation",  # Keras, of itself
}

# One example trains as a newcomer would. What the others do quick tests do as well, and
# what the benchmarks print is no part of the tests.
QUICK = {"train_digits", "resume_from_keras", "resume_from_torch"}
# multi_process.py has a test of its own, which does what it does.
SCRIPTS = [
    pytest.param(
        path, id=path.name, marks=[] if path.stem in QUICK else [pytest.mark.slow]
    )
    for folder in ("examples", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem != "multi_process"
]


@pytest.mark.parametrize("path", SCRIPTS)
def test_runs_as_a_script(path, tmp_path):
    source = path.read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, path, *(["--quick"] if "--quick" in source else [])],
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
    for name in re.findall(r"[\w-]+\.png", source):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if path.name.startswith("train_digits"):
        *_, accuracy = re.findall(r"test accuracy ([\d.]+)%", done.stdout)
        assert 98 <= float(accuracy) <= 100
