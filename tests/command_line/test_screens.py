"""The documentation's screens are what the commands print."""

import pytest
from support.screens import PAGE, SCREEN, run_screen

SCREENS = {m[1]: m[2] for m in SCREEN.finditer(PAGE.read_text())}


@pytest.mark.parametrize(
    "command", [x for x in SCREENS if not x.startswith("identify")]
)
def test_screens_are_real(command):
    """Write them anew with `PYTHONPATH=tests python tests/support/screens.py`."""
    assert run_screen(command) == SCREENS[command]


def test_screens_fit_a_page():
    assert {command.split()[0] for command in SCREENS} == {
        "inspect",
        "convert",
        "identify",
    }
    for printed in SCREENS.values():
        assert all(len(line) <= 88 for line in printed.splitlines())
