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

ROOT = Path(__file__).parents[2]
# Not strict promotion: optax's own cosine schedule takes the minimum of an int32 count
# and a float.
ENVIRONMENT = {
    "MATPLOTLIBRC": str(ROOT / "matplotlibrc"),
    "OMP_NUM_THREADS": "1",  # torch's threads spin while other tests have the cores
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "PYTHONWARNINGS": "error,ignore:__array__ implementation",  # Keras, of itself
}

# What the examples print when they have learned: with these arguments, all numbers that
# the pattern finds lie between the two.
LEARNS = {
    "a2c_cartpole": ([], r"RMSprop: .* minimum ([\d.]+)", 475, 500),
    "bf16_training": ([], r"test accuracy ([\d.]+)%", 97, 100),
    "char_rnn": (["--steps", "160"], r"(?:graves|rmsprop) +([\d.]+)", 1.7, 2.6),
    "char_rnn_from_torch": ([], r"at most ([\d.e-]+) bits", 0, 1e-5),
    "mobilenet_digits": ([], r"timm +[\d.]+% +([\d.]+)%", 98, 100),
    # A random player gets 0.43 here; the rules that are torch's have left that by then.
    "dqn_minatar": (
        ["--frames", "30000", "--seeds", "1"],
        r"(?:minatar|momentum of 0.95): .* minimum ([\d.]+)",
        0.53,
        1.0,
    ),
    "train_digits": ([], r"test accuracy ([\d.]+)%, ", 98, 100),
    "train_digits_nnx": ([], r"test accuracy ([\d.]+)%, ", 98, 100),
}

# What others do not run without. The rehearsal ends by itself after two minutes.
ARGUMENTS = {"on_gpu": ["out", "--rehearse"]}

# Each takes some ten seconds, and what it does other tests do as well.
QUICK = {"resume_from_keras", "resume_from_torch"}


def runs():
    """Every script with --quick, where it has that, and as long as it learns."""
    for folder in ("examples", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            source = path.read_text(encoding="utf-8")
            marks = [] if path.stem in QUICK else [pytest.mark.slow]
            if "except ImportError" in source:  # it starts in another framework
                marks.append(pytest.mark.live)
            quick = "--quick" in source
            # multi_process.py has a test of its own, which does what it does.
            if path.stem == "multi_process":
                continue
            if quick:
                yield pytest.param(path, ["--quick"], None, id=path.name, marks=marks)
            if path.stem in LEARNS:
                arguments, *learned = LEARNS[path.stem]
                name = f"{path.name} learns"
                yield pytest.param(path, arguments, learned, id=name, marks=marks)
            elif not quick:
                arguments = ARGUMENTS.get(path.stem, [])
                yield pytest.param(path, arguments, None, id=path.name, marks=marks)


@pytest.mark.parametrize(("path", "arguments", "learned"), list(runs()))
def test_runs_as_a_script(path, arguments, learned, tmp_path):
    done = subprocess.run(
        [sys.executable, path, *arguments],
        cwd=tmp_path,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900 if learned else 300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "pip install" not in done.stdout
    for name in re.findall(r"[\w-]+\.png", path.read_text(encoding="utf-8")):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if learned:
        pattern, least, most = learned
        numbers = [float(number) for number in re.findall(pattern, done.stdout)]
        assert numbers, done.stdout
        assert all(least <= number <= most for number in numbers), numbers


def test_every_example_has_its_row():
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[(\w+\.py)\]\(\1\) (.*)", readme, re.MULTILINE))
    for path in (ROOT / "examples").glob("*.py"):
        assert path.name in rows
        pictures = set(re.findall(r"[\w-]+\.png", path.read_text(encoding="utf-8")))
        assert set(re.findall(r"[\w-]+\.png", rows[path.name])) == pictures


def test_pictures_have_their_style_from_matplotlibrc():
    for path in [*ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py")]:
        source = path.read_text(encoding="utf-8")
        own = re.findall(r"spines|frameon|rcParams|dpi=|#[0-9A-F]{6}\b", source)
        assert not own, path
