"""Measure how far every dialect is from its framework, and a wrong rule from it.

    pip install -e ".[test]"
    python benchmarks/evidence.py

Reads the recordings of the real frameworks in tests/recorded, runs the dialects on the
same gradients, and prints the table of docs/evidence.md, or with --write puts it there.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from recorded import problem  # noqa: E402
from recorded.frameworks import FRAMEWORKS  # noqa: E402
from support import trajectories  # noqa: E402

PAGE = ROOT / "docs/evidence.md"
NAMES = [name for name, framework in FRAMEWORKS.items() if framework.recorded]
HEAD = (
    "compared with",
    "dialect",
    "calls",
    "distance in float64",
    "distance in float32",
    "nearest wrong rule",
    "its distance",
)
# Ways in which a rule could be wrong, in words.
OPTIONS = {
    "initial_scale": "ν initialized otherwise",
    "eps_in_sqrt": "ε at the other place",
    "learning_rate_in_momentum": "the other momentum order",
    "decoupled_weight_decay": "the other weight decay",
}


def recording(name: str) -> Path:
    """Return the file of a framework."""
    return trajectories.RECORDED / f"{name}.npz"


def describe(name: str) -> str:
    """Return a framework and its versions."""
    packages: dict[str, Any] = trajectories.made_by(recording(name))["packages"]
    return ", ".join(
        f"{package} {version.partition('+')[0]}"
        for package, version in packages.items()
        if package != "numpy"
    )


def count_calls(name: str) -> int:
    """Return the number of combinations of arguments and schedules compared."""
    return len(problem.configurations(name))


def measure(name: str, dtype: str) -> float:
    """Return the largest distance of a parameter, relative to how far it moved."""
    us = trajectories.ours(name, dtype)
    them = trajectories.theirs(recording(name), dtype)
    exact = trajectories.theirs(recording(name), "float64")
    # If centered, the framework loses digits in float32, so compare with its float64.
    return max(
        trajectories.distance(
            us[key], (exact if trajectories.is_centered(key) else them)[key]
        )
        for key in them
    )


def row(name: str) -> str:
    """Return a line of the table."""
    wrong = trajectories.wrong_rules(name, recording(name))
    nearest = min(wrong, key=lambda option: wrong[option])
    cells = (
        describe(name),
        f"`{FRAMEWORKS[name].dialect}`",
        str(count_calls(name)),
        f"{measure(name, 'float64'):.0e}",
        f"{measure(name, 'float32'):.0e}",
        OPTIONS[nearest],
        f"{wrong[nearest]:.0e}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="into docs/evidence.md")
    arguments = parser.parse_args()
    lines = [
        f"| {' | '.join(HEAD)} |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for name in NAMES:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if not arguments.write:
        return
    table = "\n".join(lines)
    PAGE.write_text(
        re.sub(
            "(<!-- table: evidence -->\n).*?(<!-- end -->)",
            lambda found: f"{found[1]}{table}\n{found[2]}",
            PAGE.read_text(),
            flags=re.DOTALL,
        )
    )


if __name__ == "__main__":
    main()
