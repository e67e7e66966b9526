"""What a PyTorch pickle may name, and the arrays that it becomes.

A tensor is a storage (bytes outside the pickle), an offset, sizes and strides, all in elements::

    x[i, j, ...] = storage[offset + i stride_0 + j stride_1 + ...]

so every element is in bounds if the last one is. The arrays are read-only views of the storage.
"""

import reprlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.pretrained.pickles import Builder, Names, State


class Dtype(NamedTuple):
    """A type of elements, by NumPy's name for it."""

    name: str


class Storage(NamedTuple):
    """Elements in a row."""

    data: np.ndarray
    """uint8 [n * itemsize]"""
    dtype: np.dtype


STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}

DTYPES = {name: name for name in STORAGES.values()} | {
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "float8_e4m3fn": "float8_e4m3fn",
    "float8_e4m3fnuz": "float8_e4m3fnuz",
    "float8_e5m2": "float8_e5m2",
    "float8_e5m2fnuz": "float8_e5m2fnuz",
}


def names() -> Names:
    """What a PyTorch pickle may name: ordered dictionaries, tensors, parameters, sizes, types of elements, flags."""
    return {
        ("collections", "OrderedDict"): Builder(State),
        ("torch._utils", "_rebuild_tensor"): Builder(tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Builder(_tensor_v2),
        ("torch._utils", "_rebuild_tensor_v3"): Builder(_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): Builder(_parameter),
        # The flags of a training, which lie beside its weights in many files. Read as an empty dictionary.
        ("argparse", "Namespace"): State,
        # The class by which a trainer's file, such as Stable Diffusion's, keeps the state of what it called back.
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): State,
        ("torch", "Size"): Builder(tuple),
        ("torch.storage", "UntypedStorage"): Dtype("uint8"),
        **{("torch", name): Dtype(dtype) for name, dtype in STORAGES.items()},
        **{("torch", name): Dtype(dtype) for name, dtype in DTYPES.items()},
    }


def numpy_dtype(dtype: object) -> np.dtype:
    """NumPy's type of elements; raises ValueError for anything but a `Dtype`."""
    if not isinstance(dtype, Dtype):
        raise ValueError(f"a type of elements is expected, not {_short(dtype)}")
    # jnp has the names that NumPy lacks: bfloat16 and the 8-bit floats.
    return np.dtype(bool) if dtype.name == "bool" else np.dtype(getattr(jnp, dtype.name))


def tensor(storage: object, offset: object, size: object, stride: object) -> np.ndarray:
    """The read-only array at `offset` with `size` and `stride`; raises ValueError where it leaves the storage."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor's storage is expected, not {_short(storage)}")
    start, shape, steps = natural(offset), _naturals(size), _naturals(stride)
    if len(shape) != len(steps):
        raise ValueError(f"a tensor has {len(shape)} sizes but {len(steps)} strides")
    itemsize = storage.dtype.itemsize
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    if (last + 1) * itemsize > storage.data.size:
        raise ValueError(
            f"a tensor of sizes {_short(shape)}, strides {_short(steps)} and offset {start} "
            f"leaves its storage of {storage.data.size // itemsize} elements"
        )
    strides = tuple(step * itemsize for step in steps)
    array = np.ndarray(shape, storage.dtype, storage.data, start * itemsize, strides)
    array.flags.writeable = False
    return array


def natural(value: object) -> int:
    """`value`, an integer from 0 on; raises ValueError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"an integer from 0 on is expected, not {_short(value)}")
    return value


def _naturals(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise ValueError(f"a tuple of integers is expected, not {_short(values)}")
    return tuple(natural(value) for value in values)


def _tensor_v2(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
) -> np.ndarray:
    if metadata:
        # Marks such as "to be conjugated", which change the values.
        raise ValueError(f"a tensor with marks {_short(metadata)} is not supported")
    return tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> np.ndarray:
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor's storage is expected, not {_short(storage)}")
    typed = Storage(storage.data, numpy_dtype(dtype))
    return _tensor_v2(typed, offset, size, stride, metadata=metadata)


def _parameter(data: object, requires_grad: object = True, hooks: object = None) -> object:
    return data


def _short(value: object) -> str:
    # Not repr: it never ends on a small pickle of a list that holds a list twice, sixty times over.
    return reprlib.repr(value)
