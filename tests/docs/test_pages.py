"""README and documentation: their code runs, their tables and links are true."""

import ast
import contextlib
import io
import re
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from recorded.frameworks import with_timm

from rmsprop_jax import schedules

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PEERS = {"keras", "stable_baselines3", "timm", "torch"}


def blocks(page):
    """Return the Python of a page, from top to bottom; in a tab it is indented."""
    fences = r"^( *)```python\n(.*?)^\1```"
    found = re.findall(fences, page.read_text(), re.M | re.S)
    assert all("--8<--" not in block for _, block in found)
    return [textwrap.dedent(block) for _, block in found if is_new_enough(block)]


def is_new_enough(block):
    """Whether the package is here that a block begins with: `# flax 0.12 or later`."""

    def numbers(version):
        return [int(number) for number in re.findall(r"\d+", version)]

    needs = re.search(r"\A *# (\w+) ([\d.]+) or later\n", block)
    return not needs or numbers(metadata.version(needs[1])) >= numbers(needs[2])


def peers_of(block):
    """The packages of others that a block imports or uses."""
    names = set()
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names & PEERS


def pages(*, live):
    """The pages that have code, and those that have code of others."""
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if any(not live or peers_of(block) for block in blocks(page))
    ]


@pytest.fixture
def as_users_have_it(monkeypatch, tmp_path):
    """JAX's own defaults, in an empty folder; the tests have eight devices already."""
    update = jax.config.update
    monkeypatch.setattr(
        jax.config,
        "update",
        lambda name, value: name == "jax_num_cpu_devices" or update(name, value),
    )
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(code):
    """A page's blocks are one program. Comments at a block's end are what it prints."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in code:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, block, "exec"), namespace)
        says = re.search(r"(?:^# .*\n)*\Z", block, re.MULTILINE)
        if says and says[0]:
            assert printed.getvalue() == re.sub("^# ", "", says[0], flags=re.M)
    return namespace


@pytest.mark.parametrize("page", pages(live=False))
def test_code_runs(page, as_users_have_it):
    code = [block for block in blocks(page) if not peers_of(block)]
    if jax.__version_info__ < (0, 10, 2):
        code = [block for block in code if "offload" not in block]
    run(code)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")  # those of others
@pytest.mark.parametrize("page", pages(live=True))
def test_code_runs_beside_that_of_others(page, as_users_have_it):
    used = set.union(*map(peers_of, blocks(page)))
    if "timm" in used:
        with_timm("timm.optim")  # which is then there, whatever torchvision it finds
    run(blocks(page))


SCHEDULERS = re.findall(
    r"^\| `(\w+)(.*?)` \| `(.*?)` \|$",
    re.findall(
        r"<!-- table: schedulers -->(.*?)<!-- end -->",
        (ROOT / "docs/schedules.md").read_text(),
        re.S,
    )[0],
    re.M,
)


@pytest.mark.live
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("scheduler", "arguments", "ours"), SCHEDULERS, ids=lambda x: x[:20]
)
def test_schedules_are_torchs(scheduler, arguments, ours, as_users_have_it):
    import torch
    from torch.optim import lr_scheduler, swa_utils

    made = eval(ours, {"lr": 0.1, "schedules": schedules})
    pair = made if isinstance(made, tuple) else (made,)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.RMSprop([weight], lr=0.1)
    known = vars(lr_scheduler) | vars(swa_utils) | {"optimizer": optimizer}
    theirs = eval(scheduler + arguments, known)
    for count in range(200):
        group = optimizer.param_groups[0]
        expected = [group["lr"], group["momentum"]][: len(pair)]
        rates = [schedule(count) for schedule in pair]
        np.testing.assert_allclose(rates, expected, rtol=2e-6, atol=1e-8)
        optimizer.step()
        if count < 199:  # OneCycleLR has no more
            theirs.step()


@pytest.mark.live
def test_every_scheduler_of_torch_has_a_row():
    from torch.optim import lr_scheduler

    # ReduceLROnPlateau, which is no function of the count, has a block; LRScheduler is
    # what all are made of.
    others = {"ReduceLROnPlateau", "LRScheduler"}
    assert {name for name, *_ in SCHEDULERS} | others >= {*lr_scheduler.__all__}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_what_exists(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for path in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (page.parent / path).exists(), path


def test_the_readme_is_for_two_minutes():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    train = r'^    pip install -e "\.\[demo\]" && python examples/compare_dialects\.py$'
    assert re.search(train, text, re.M)
    assert re.search(r'^    pip install -e "\.\[test\]" && pytest$', text, re.M)


def test_every_example_is_in_the_gallery():
    """Make what is missing with `python docs/gallery.py NAME`."""
    examples = {
        path.stem
        for path in (ROOT / "examples").glob("*.py")
        if "__main__" in path.read_text()
    }
    assert examples <= {path.stem for path in (ROOT / "docs/gallery").glob("*.txt")}


def test_pictures_are_small_and_shown():
    shown = {
        Path(name).name
        for page in PAGES
        for name in re.findall(r"\((\S+\.(?:webp|svg))\)", page.read_text())
    } | {f"{path.stem}.webp" for path in (ROOT / "docs/gallery").glob("*.txt")}
    for picture in (ROOT / "docs/pictures").iterdir():
        assert picture.name in shown
        assert picture.stat().st_size < 100_000
