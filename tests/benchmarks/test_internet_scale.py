"""The README's table of large models says what their shardings say."""

import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_bytes_in_the_readme(monkeypatch):
    """Its script, when it prints the table, fails if XLA says otherwise."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("internet_scale")
    row = r"^\| ([\d,]+) \| (\d+) \| (.* GB) \| \3 \| \3 \| .* \| 0 \| \d+ s \|$"
    expected = []
    for shape in benchmark.MODELS:
        for devices in (8, 512):
            _, params, state = benchmark.abstract_run(shape, devices)
            held = benchmark.gigabytes(benchmark.bytes_of((params, state)))
            expected.append((benchmark.number_of(params), str(devices), held))
    readme = (ROOT / "README.md").read_text()
    assert re.findall(row, readme, re.MULTILINE) == expected
