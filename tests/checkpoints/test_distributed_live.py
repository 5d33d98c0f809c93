"""FSDP runs, made anew by torch in one, two and four processes."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from recorded import record_fsdp
from recorded.record_fsdp import RUNS
from support.distributed import extract, resume_all

from rmsprop_jax.checkpoints import read

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders that torch writes now, by a process of its own, which forks."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("made")
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, record_fsdp.__file__, "--folder", str(folder)],
        env={**os.environ, **quiet},
        check=True,
        timeout=300,
    )
    return folder


@pytest.mark.usefixtures("x64")
def test_fsdp_runs_go_on(made):
    distances = resume_all(made)
    assert max(distances.values()) <= 1e-12, distances


def test_recorded_folders_are_what_torch_writes(made, tmp_path):
    recorded = extract(tmp_path)
    for name in RUNS:
        one, other = (read(folder / name) for folder in (made, recorded))
        assert jax.tree.structure(one) == jax.tree.structure(other), name
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            if isinstance(b, np.ndarray | float):
                np.testing.assert_allclose(a, b, rtol=1e-12)
            else:
                assert a == b
        assert sorted(p.name for p in (made / name).iterdir()) == sorted(
            p.name for p in (recorded / name).iterdir()
        )
