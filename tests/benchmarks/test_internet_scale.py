"""The documentation's table of large models says what their shardings say."""

import re
from pathlib import Path

import internet_scale
import jax
from jax.sharding import AbstractMesh

PAGE = (Path(__file__).parents[2] / "docs/many-devices.md").read_text()


def is_known(kind):
    """Whether this jax can keep a state there."""
    return "host" not in kind or jax.__version_info__ >= (0, 10, 2)


def test_the_bytes_in_the_table():
    """Its script, when it prints the table, fails if XLA says otherwise."""
    row = r"^\| ([\d,]+) \| (\d+ [\w ]+) \| (float32|bfloat16|.*host) \| ([\d.]+ GB) \|"
    expected = []
    for shape, machine, kind in internet_scale.ROWS:
        if not is_known(kind):
            continue
        mesh = AbstractMesh((int(machine.split()[0]),), ("data",))
        params, state = internet_scale.abstract_run(shape, mesh, kind)
        held = internet_scale.gigabytes(internet_scale.bytes_of((params, state)))
        number = internet_scale.number_of(params)
        expected.append((number, machine, kind, held))
    found = re.findall(row, PAGE, re.MULTILINE)
    assert [each for each in found if is_known(each[2])] == expected
