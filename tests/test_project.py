"""The docstrings and the project's papers say what is true."""

import ast
import doctest
import graphlib
import importlib.metadata
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

import rmsprop_jax

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rmsprop_jax").rglob("*.py"))
MODULES = [
    module.name
    for module in pkgutil.walk_packages(rmsprop_jax.__path__, "rmsprop_jax.")
    # Which needs it.
    if jax.__version_info__ >= (0, 10, 2) or not module.name.endswith("_offload")
]


@pytest.mark.parametrize("module", ["rmsprop_jax", *MODULES])
def test_docstring_examples(module):
    with jax.numpy_dtype_promotion("standard"):  # as users have it
        result = doctest.testmod(
            importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
        )
    assert result.failed == 0


@pytest.mark.parametrize("name", rmsprop_jax.__all__)
def test_public_functions_show_an_example(name):
    public = getattr(rmsprop_jax, name)
    if callable(public) and not isinstance(public, type):
        assert ">>>" in (public.__doc__ or "")


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = re.search(
        r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    assert citation
    assert citation[1] == project["version"]
    assert importlib.metadata.version("rmsprop_jax") == project["version"]


def test_every_folder_is_a_package():
    """Otherwise the documentation, and whatever walks packages, passes it by."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_public_names_and_declared_packages_are_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, *rest = name.split(".")
            declared = {
                # Of the extra checkpoints: imported within functions.
                "google_crc32c",
                "h5py",
                # Of the command line: imported within functions.
                "matplotlib",
                "orbax",
                "jax",
                "optax",
                "numpy",
                "rmsprop_jax",
                "tqdm",  # for a progress bar, if it is installed
                *sys.stdlib_module_names,
            }
            assert root in declared, name
            if root != "rmsprop_jax":
                assert not any(part.startswith("_") for part in rest), name


def imported_by(module, path):
    """The modules of the package that a file imports, also for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            of = [f"{node.module}.{alias.name}" for alias in node.names]
            # Of a package either its modules or what it defines itself.
            names = [name if name in FILES else node.module for name in of]
        for name in names:
            if name in FILES and name != module:
                yield name


def test_importing_the_package_imports_nothing_of_the_command_line():
    """Nor what only some files and commands need."""
    others = ["rmsprop_jax._cli", "h5py", "matplotlib", "orbax", "safetensors", "tqdm"]
    program = (
        f"import rmsprop_jax, sys; print([x for x in {others} if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in SOURCES
}


def test_imports_have_no_circle():
    graph = {module: set(imported_by(module, path)) for module, path in FILES.items()}
    # It sees some.
    assert "rmsprop_jax._optimizer.safe_math" in graph["rmsprop_jax._optimizer.rule"]
    graphlib.TopologicalSorter(graph).prepare()  # which raises where there is one


def test_the_package_is_typed():
    assert (ROOT / "rmsprop_jax" / "py.typed").exists()


def test_every_test_asserts_something():
    """A test that calls functions without looking at what they do holds nothing."""
    in_support: set[str] = {"raises", "warns", "fail", "check_shardings"}
    for path in sorted((ROOT / "tests" / "support").glob("*.py")) * 2:
        in_support |= _find_asserting(path, in_support)
    without = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        asserting = _find_asserting(path, in_support)
        without += [
            f"{path.relative_to(ROOT)}::{node.name}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
            and node.name.startswith("test_")
            and node.name not in asserting
        ]
    assert not without


def _find_asserting(path: Path, known: set[str]) -> set[str]:
    """The functions of a file that assert something, or call one that does."""
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    found: set[str] = set()
    for _ in range(4):  # as deep as calls are
        for function in functions:
            for node in ast.walk(function):
                name = getattr(node, "attr", getattr(node, "id", ""))
                if (
                    isinstance(node, ast.Assert)
                    or name.startswith("assert_")
                    or (name != function.name and name in known | found)
                ):
                    found.add(function.name)
    return found
