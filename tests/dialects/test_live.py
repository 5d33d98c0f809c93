"""Every dialect against the framework itself, where it is installed.

The same comparisons as with the recordings, of a new recording.
"""

import pytest
from recorded import record
from recorded.frameworks import FRAMEWORKS
from support import trajectories

pytestmark = pytest.mark.live


@pytest.fixture(scope="module", params=FRAMEWORKS)
def live(request, tmp_path_factory):
    """A framework's name, and its trajectories just recorded."""
    name = request.param
    path = tmp_path_factory.mktemp("live") / f"{name}.npz"
    record.record_apart(name, path)
    return name, path


def test_float64_is_theirs(live):
    trajectories.check_same_rule(*live)


def test_float32_is_theirs_or_better(live):
    trajectories.check_same_numbers(*live)


def test_arguments_are_theirs(live):
    trajectories.check_same_arguments(*live)
