"""Files and folders that frameworks wrote, and the command line in this process."""

import pytest
from support.screens import extract_folders

from rmsprop_jax._cli import main


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder for each framework of the Keras family, and one of FSDP's folders."""
    return extract_folders(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line, and return its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "88")

    def run(*argv):
        code = main([str(x) for x in argv])
        return code, *capsys.readouterr()

    return run
