"""Whatever a stranger changed in a file, the commands answer, or say one sentence."""

import random
import shutil

import pytest
from support.mutations import mutate
from support.strangers import FORMATS, unpack

from rmsprop_jax.checkpoints._readers import source

# Those of `mutate`, which writes a member twice.
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")
COUNT = 2


def attempt(name, seed, run, folder):
    """Inspect and convert a changed file, and return the exit codes."""
    folder.mkdir()
    path = unpack(name, folder)
    pick = random.Random(seed)
    beside = [folder / file for file in FORMATS[name].beside]
    mutate(pick.choice([path, path, path, *beside]), pick)
    codes = []
    for argv in (
        ["inspect", path, "--statistics"],
        ["inspect", path, "--json"],
        ["convert", path, folder / "out", "--to", "npz", "--weights", "--force"],
    ):
        code, out, err = run(*argv)
        assert code in (0, 2)
        assert (out == "") == (code == 2)
        assert err.count("\n") == (code == 2)
        assert all(x == "\n" or x.isprintable() for x in out + err)
        codes.append(code)
    shutil.rmtree(folder)
    return codes


@pytest.mark.parametrize("name", FORMATS)
def test_changed_files(name, run, tmp_path, monkeypatch):
    """None leads to an exception that nobody foresaw, which would be a sentence too."""
    foreseen = source.UnforeseenError

    def refuse(message):
        raise AssertionError(message)

    monkeypatch.setattr(source, "UnforeseenError", refuse)
    codes = [attempt(name, seed, run, tmp_path / str(seed)) for seed in range(COUNT)]
    assert foreseen
    assert len(codes) == COUNT


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_changed_files(name, run, tmp_path):
    codes = [attempt(name, seed, run, tmp_path / str(seed)) for seed in range(99, 160)]
    assert [2, 2, 2] in codes
