"""The documentation's table of evidence is that of the recordings that are here."""

import re

import evidence
from support import trajectories


def test_the_table():
    """Its figures differ from machine to machine, but within the tests' limits."""
    number = r"(\d+|\de-\d\d)"
    row = r"^\| (.*?) \| `(\w+)` " + rf"\| {number} " * 3 + rf"\| .* \| {number} \|$"
    rows = re.findall(row, evidence.PAGE.read_text(), re.MULTILINE)
    known = [
        (
            evidence.describe(name),
            evidence.FRAMEWORKS[name].dialect,
            str(evidence.count_calls(name)),
        )
        for name in evidence.NAMES
    ]
    assert [found[:3] for found in rows] == known
    for *_, double, single, wrong in rows:
        assert 0 < float(double) <= trajectories.TOLERANCE["float64"]
        assert 0 < float(single) <= trajectories.TOLERANCE["float32"]
        assert float(wrong) > 10 * trajectories.TOLERANCE["float32"]
