"""Safetensors files: named arrays and nothing else, by the format's own library."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

from jaxdiff.pretrained.pickles import refusing

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool_",
    "C64": "complex64",
}


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file by name. Raises ValueError of one line where it is damaged."""
    with refusing(path):
        arrays = {}
        # The library's own NumPy reader lacks bfloat16; its parser gives checked bytes.
        for name, entry in deserialize(path.read_bytes()):
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} has elements of type {entry['dtype']}, allowed are {', '.join(DTYPES)}")
            dtype = np.dtype(getattr(jnp, DTYPES[entry["dtype"]]))
            arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
        return arrays


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays, whole or, if the process is killed, not at all."""
    part = path.with_name(f".{path.name}.part")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
    part.replace(path)
