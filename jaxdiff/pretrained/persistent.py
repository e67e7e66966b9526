"""Pickles of EDM and EDM2: whole networks with the source of their classes, read as data and never run.

Such a file is a dictionary of "persistent" objects. Each is a call of one function with the text of a Python file, the
name of a class in it, and the attributes of the instance. The text is dropped here, and the attributes are kept in a
`Module`, which does nothing. Tensors lie in the pickle as calls with the bytes of a PyTorch file in the old format.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdiff.pretrained import numpy_pickle, torch_legacy, torch_tensors
from jaxdiff.pretrained.pickles import Builder, Names, State, load, nothing_outside, refusing, scan
from jaxdiff.pretrained.torch_tensors import Storage

SETS = ("EMPTY_SET", "ADDITEMS")
"""The opcodes of sets, which PyTorch's modules hold."""


class Module:
    """An instance in such a file: the name of its class, and its attributes."""

    # A pickle makes it without __init__, and gives the attributes later.
    kind: str = ""
    state: Mapping[str, object] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise ValueError("refused, an object's attributes are no dictionary")
        self.state = state

    def field(self, name: str, default: object = None) -> object:
        """An attribute, or `default`."""
        return self.state.get(name, default)

    def part(self, name: str) -> "Module":
        """A module inside this one. Raises ValueError where there is none of that name."""
        parts = self.state.get("_modules")
        found = parts.get(name) if isinstance(parts, dict) else None
        if not isinstance(found, Module):
            raise ValueError(f"weights of another network: {self.kind} has no {name}")
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters and buffers by their names, joined by dots."""
        return _flat(self, "", set())


def read(path: Path) -> Module:
    """The averaged network of the file ("ema").

    Raises ValueError of one line where the file names anything but such objects and arrays, is damaged, or has none.
    """
    with refusing(path):
        tree = load(scan(io.BytesIO(path.read_bytes()), SETS), names(), nothing_outside)
        found = tree.get("ema") if isinstance(tree, dict) else None
        if not isinstance(found, Module):
            raise ValueError("holds no averaged network ('ema')")
        return found


def recognised(path: Path) -> bool:
    """Whether the file begins as a pickle that names these objects; the old format of PyTorch begins so too."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head[:1] == b"\x80" and b"torch_utils.persistence" in head


def names() -> Names:
    """What such a pickle may name."""
    return {
        **torch_tensors.names(),
        **numpy_pickle.names(),
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): Builder(_persistent),
        ("torch.storage", "_load_from_bytes"): Builder(_storage),
        ("torch", "device"): Builder(lambda *place: place),
        ("dnnlib.util", "EasyDict"): State,
        **{("torch.nn.modules.container", kind): Module for kind in ("ModuleDict", "ModuleList", "Sequential")},
    }


def _persistent(meta: object) -> Module:
    match meta:
        case {"type": "class", "class_name": str(kind), "state": dict(state)}:
            found = Module()
            found.kind, found.state = kind, state
            return found
    raise ValueError("refused, a persistent object without its class and attributes")


def _storage(data: object) -> Storage:
    found = torch_legacy.parse(data) if isinstance(data, bytes) else None
    if not isinstance(found, Storage):
        raise ValueError("refused, a storage without its bytes")
    return found


def _flat(module: Module, prefix: str, seen: set[int]) -> dict[str, np.ndarray]:
    # A module that holds itself, or one twice at each of many depths, would never end.
    if id(module) in seen:
        raise ValueError("refused, one of its modules occurs twice")
    seen.add(id(module))
    found = {}
    for group in ("_parameters", "_buffers", "_modules"):
        members = module.state.get(group)
        for name, value in members.items() if isinstance(members, dict) else ():
            if isinstance(value, Module):
                found |= _flat(value, f"{prefix}{name}.", seen)
            elif isinstance(value, np.ndarray):
                found[f"{prefix}{name}"] = value
    return found
