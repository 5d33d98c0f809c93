"""Files that Keras and TensorFlow wrote."""

import zipfile

import pytest
from recorded.record_keras_runs import FILE


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder for each framework, and in it the files of its recorded runs."""
    folder = tmp_path_factory.mktemp("keras")
    with zipfile.ZipFile(FILE) as archive:
        archive.extractall(folder)
    return folder
