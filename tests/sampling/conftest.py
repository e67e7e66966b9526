"""Gives the tests of this folder `closed_form.py` as a fixture (test folders are not packages)."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def closed_form():
    spec = importlib.util.spec_from_file_location("closed_form", pathlib.Path(__file__).parent / "closed_form.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
