"""The script for a GPU: its table, parts that fail or hang, and the page."""

import json
import sys
from pathlib import Path

import on_gpu

DOCS = Path(__file__).parents[2] / "docs"

CASE = {"parameters": 10**8, "leaves": 1, "options": "momentum"}
RESULT = {
    "rehearsal": False,
    "device": "NVIDIA H100",
    "jax": "0.11.2",
    "optax": "0.2.8",
    "parts": {
        "tests": {"ended": "out of time", "seconds": 120.4},
        "steps": {"ended": "done", "seconds": 99.0},
        "kernels": {"ended": "failed", "seconds": 3.0, "error": "ValueError: a reason"},
    },
    "tests": {
        "chosen": 1230,
        "passed": 1100,
        "skipped": 1,
        "failed": ["tests/t.py::a"],
    },
    "trajectories": {"steps": 60, "torch on": "cuda", "largest": {"plain": 1.25e-7}},
    "steps": [
        CASE
        | {
            "copied bytes a second": 2.5e12,
            "by": {
                "rmsprop": {"ms": [1.25, 1.2, 1.5], "of copying": 0.896},
                "torch for-loop": {"error": "OutOfMemoryError: 2 GB"},
            },
        }
    ],
    "kernels": [
        CASE
        | {"by": "rmsprop", "kernels a step": 2.0, "kernels": {"fusion": 20}}
        | {"ms on the device": 1.1234, "seconds to compile": 0.456}
        | {"temporary bytes": 0, "peak bytes": 1_600_000_000}
    ],
    "rounding": {
        "steps": 20,
        "elements": 1_048_576,
        "same as CPU, one step": {"nu": 1.0, "mu": 0.99},
        "same as CPU, all steps": {"nu": 0.75, "mu": 0.5},
        "mean of nu ratio": 1.00012,
    },
}


def test_the_table_has_units_shares_and_spreads():
    table = on_gpu.format_table(RESULT)
    assert (
        "\n| momentum | 100,000,000 | 1 | 1.250 (1.200–1.500), 90% | – | – |" in table
    )
    assert "| OutOfMemoryError |" in table
    assert "An array in place: 2.500 TB/s." in table
    assert "| rmsprop | 2 | 1.123 ms | 0.46 s | 0.0 MB | 1,600.0 MB |" in table
    assert "torch on cuda, relative to the largest parameter: plain 1.2e-07." in table
    assert "ν 100.000% and momentum 99.000% after one step" in table
    assert (
        "75.000% and 50.000% after 20. ν's mean then, over float32's: 1.00012" in table
    )
    assert "Of 1,230 tests, 1,100 passed, 1 failed, 1 skipped." in table
    assert "- failed: `tests/t.py::a`" in table
    assert "tests: out of time after 120 s." in table
    assert "kernels: failed after 3 s: ValueError: a reason." in table
    assert "steps: done" not in table
    assert "rehearsal" not in table
    assert "rehearsal" in on_gpu.format_table(RESULT | {"rehearsal": True})


def test_a_part_that_fails_or_hangs_stops_no_other(tmp_path, capsys):
    for name, code, limit in (
        ("hangs", "import time; print('begun', flush=True); time.sleep(60)", 2),
        ("fails", "raise ValueError('a reason')", 60),
        ("ends", "print('fine')", 60),
    ):
        on_gpu.run_part(tmp_path, name, [sys.executable, "-S", "-c", code], limit)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    ended = {name: part["ended"] for name, part in parts.items()}
    assert ended == {"hangs": "out of time", "fails": "failed", "ends": "done"}
    assert parts["fails"]["error"] == "ValueError: a reason"
    assert parts["hangs"]["seconds"] < 20
    assert "fails: failed" in capsys.readouterr().out


def test_outcomes_are_counted_while_the_tests_still_run():
    with_xdist = """8 workers [5 items]
tests/a.py::one[no decay]
[gw0] [ 20%] PASSED tests/a.py::one[no decay]
[gw1] [ 40%] FAILED tests/a.py::two
[gw1] [ 60%] SKIPPED tests/a.py::three
tests/a.py::four
"""
    alone = """collected 9 items / 4 deselected / 5 selected
tests/a.py::one[no decay] PASSED                 [ 20%]
tests/a.py::two FAILED                           [ 40%]
tests/a.py::three SKIPPED (why)                  [ 60%]
tests/a.py::four """
    expected = {"chosen": 5, "passed": 1, "skipped": 1, "failed": ["tests/a.py::two"]}
    for text in (with_xdist, alone):
        assert on_gpu.read_outcomes(text) == expected
    broken = on_gpu.read_outcomes("ERROR tests/b.py - ImportError: no chex")
    assert broken["failed"] == ["tests/b.py"]


def test_the_page_says_what_the_gpu_said():
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- on_gpu.py: begin -->\n")
    section, end, _ = rest.partition("\n<!-- on_gpu.py: end -->")
    assert end
    expected = on_gpu.OWED
    if (DOCS / "gpu.json").exists():
        result = json.loads((DOCS / "gpu.json").read_text(encoding="utf-8"))
        assert not result["rehearsal"]
        expected = on_gpu.format_table(result)
    assert section.strip() == expected
