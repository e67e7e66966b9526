"""PyTorch's file format before 1.6, which published files such as the Inception weights still have.

Five pickles (a magic number, a version, facts of the machine, the object, the keys of its storages), then for
each key the number of elements as a 64-bit integer and the elements, little-endian.
"""

import functools
import io
from pathlib import Path

import numpy as np

from jaxdiff.pretrained.pickles import load, nothing_outside, refusing, scan
from jaxdiff.pretrained.torch_tensors import Storage, names, natural, numpy_dtype

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read(path: Path) -> object:
    """What `torch.save` wrote: containers, numbers and strings as they are, tensors as read-only arrays.

    Raises ValueError of one line where the file names anything else, is damaged or big-endian.
    """
    with refusing(path):
        return parse(path.read_bytes())


def parse(data: bytes) -> object:
    """As `read`, of the bytes of such a file. Raises ValueError, and other exceptions where they are damaged."""
    # In memory: a length out of a damaged file must not be allocated before it is missed.
    file = io.BytesIO(data)
    if _plain(file) != MAGIC or _plain(file) != VERSION:
        raise ValueError("not a PyTorch file")
    match _plain(file):
        case {"little_endian": True}:
            pass
        case _:
            raise ValueError("refused, its numbers are not little-endian: save it again on another machine")
    storages: dict[str, Storage] = {}
    outside = functools.partial(_storage, storages, len(data))
    tree = load(scan(file), names(), outside)
    keys = _plain(file)
    if not isinstance(keys, list) or len(keys) != len(storages):
        raise ValueError("damaged, its storages are not those that its tensors use")
    unfilled = dict(storages)
    for key in keys:
        # A key that is unknown, or comes twice, is a KeyError.
        _fill(file, unfilled.pop(key), key)
    return tree


def _plain(file: io.BytesIO) -> object:
    return load(scan(file), {}, nothing_outside)


def _storage(storages: dict[str, Storage], room: int, pid: object) -> Storage:
    match pid:
        case ("storage", element, str(key), _, numel, None):
            dtype = numpy_dtype(element)
            size = natural(numel) * dtype.itemsize
            # Filled once the pickle is over: the bytes come after it.
            if key not in storages:
                if size + sum(other.data.size for other in storages.values()) > room:
                    raise ValueError(f"damaged, storage {key[:20]!r} of {size} bytes is larger than the file")
                storages[key] = Storage(np.zeros(size, np.uint8), dtype)
            found = storages[key]
            if (found.dtype, found.data.size) != (dtype, size):
                raise ValueError(f"refused, storage {key[:20]!r} is used as two things")
            return found
    raise ValueError("refused, its pickle refers to something other than a whole storage")


def _fill(file: io.BytesIO, storage: Storage, key: str) -> None:
    size = int.from_bytes(file.read(8), "little", signed=True) * storage.dtype.itemsize
    found = np.frombuffer(file.read(storage.data.size), np.uint8)
    if size != storage.data.size or found.size != size:
        raise ValueError(f"damaged, storage {key[:20]!r} is cut off or of another size")
    storage.data[:] = found
