"""What the tests of untrusted and published weights share."""

import importlib.util
import pathlib

import pytest

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def forge():
    """`forge.py` as a module (test folders are not packages)."""
    spec = importlib.util.spec_from_file_location("forge", HERE / "forge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def models():
    """``(name) -> path`` of published weights kept beside the repository; skips where they are not."""

    def find(name):
        path = HERE.parents[2] / "shared" / "models" / name
        if not path.is_file():
            pytest.skip(f"needs ../shared/models/{name}")
        return path

    return find
