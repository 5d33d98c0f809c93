"""A run whose processes are killed ends as the one that was left alone."""

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_survives_kills(monkeypatch, tmp_path):
    """Of the coordinator and of others, between saves and in the middle of one.

    In one test, as starting the processes is nearly all of its time.
    """
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("multi_process")

    def train(name, *args):
        (tmp_path / name).mkdir()
        return benchmark.train(tmp_path / name, *args)

    end, [start] = train("undisturbed")
    steps = benchmark.STEPS
    assert (start.first, start.last, start.saved) == (1, steps, steps)
    assert end["state/count"] == steps
    fields = {"params", "count", "nu", "mu", "grad_mean"}
    whole = sum(x.nbytes for x in end.values())

    def check(starts, kills, processes):
        assert len(starts) == len(kills) + 1
        assert starts[0].first == 1
        for before, after in itertools.pairwise(starts):
            assert after.first == before.saved + 1
        for start, kill in zip(starts, kills, strict=False):
            # Nothing is lost but the steps since the last save, and the one that was
            # going on.
            assert start.last == kill.step
            assert start.unfinished == kill.saving
            lost = start.last - start.saved
            assert 0 < lost <= benchmark.SAVE_EVERY
            assert (lost == benchmark.SAVE_EVERY) == kill.saving
        # Split over the processes' devices, but for ten biases and the count.
        numbers = [*(kill.processes for kill in kills), processes]
        for start, n in zip(starts, numbers, strict=True):
            assert whole / n <= start.bytes < 1.05 * whole / n

    kills = benchmark.SAME_NUMBER
    same, starts = train("same number", kills, 2)
    check(starts, kills, 2)
    assert same.keys() == end.keys()
    for name, x in end.items():
        assert np.isfinite(x).all()
        assert x.tobytes() == same[name].tobytes(), name

    kills = benchmark.OTHER_NUMBERS
    other, starts = train("other numbers", kills, 1)
    check(starts, kills, 1)
    off = benchmark.differences(end, other)
    assert off.keys() == fields
    assert off["count"] == 0
    assert all(value < 1e-5 for value in off.values()), off
