"""What the tests against other implementations share; each test file skips without the extra `parity`."""

import importlib.util
import sys
import types

import pytest


@pytest.fixture(scope="session")
def torch_fidelity() -> types.ModuleType:
    """The package torch_fidelity, imported without torchvision, which it needs for its data sets alone."""
    pytest.importorskip("torch", reason="needs the extra parity")
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs the extra parity")
    names = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    absent = {name: types.ModuleType(name) for name in names}
    for name in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(absent["torchvision.datasets"], name, type(name, (), {}))
    if importlib.util.find_spec("torchvision") is not None:
        absent = {}
    sys.modules.update(absent)
    try:
        return importlib.import_module("torch_fidelity")
    finally:
        for name in absent:
            del sys.modules[name]
