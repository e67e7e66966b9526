"""What the tests against other implementations share; each test file skips without the extra `parity`."""

import importlib.util
import pickle
import sys
import types
from pathlib import Path

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


class Persistent(pickle.Pickler):
    """Writes modules of other classes than PyTorch's as the programs of EDM do: source, class, attributes."""

    def reducer_override(self, obj: object) -> object:
        import torch

        if isinstance(obj, torch.nn.Module) and not type(obj).__module__.startswith("torch."):
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": type(obj).__name__}
            return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta | {"state": vars(obj)},)
        return NotImplemented


@pytest.fixture
def save_persistent(monkeypatch):
    """``(network, path) -> path`` of a file as those of EDM, whose averaged network it is."""

    def _reconstruct_persistent_obj(meta: dict) -> None:
        raise AssertionError("the file's own function was called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj

    def save(network: object, path: Path, **beside: object) -> Path:
        with path.open("wb") as file:
            Persistent(file, 4).dump({"ema": network, **beside})
        return path

    return save
