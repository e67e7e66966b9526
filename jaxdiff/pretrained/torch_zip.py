"""PyTorch's file format since 1.6: a zip archive, stored and not compressed.

    ROOT/data.pkl      the object, its storages left out
    ROOT/data/KEY      the bytes of storage KEY
    ROOT/byteorder     "little" or "big"; absent in older files, which are little-endian

Nothing is unpacked to disk, so the names in the archive matter only to find these.
"""

import functools
import io
import zipfile
from pathlib import Path

import numpy as np

from jaxdiff.pretrained.pickles import load, refusing, scan
from jaxdiff.pretrained.torch_tensors import Storage, names, natural, numpy_dtype


def read(path: Path) -> object:
    """What `torch.save` wrote: containers, numbers and strings as they are, tensors as read-only arrays.

    Raises ValueError of one line where the file names anything else, is damaged, compressed or big-endian.
    """
    with refusing(path), zipfile.ZipFile(path) as archive:
        entries = _entries(archive, path.stat().st_size)
        roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise ValueError("not a PyTorch file, it holds no data.pkl in one folder")
        root = roots[0]
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("refused, its numbers are not little-endian: save it again on another machine")
        pickled = scan(io.BytesIO(archive.read(f"{root}data.pkl")))
        return load(pickled, names(), functools.partial(_storage, archive, f"{root}data/", {}))


def _storage(archive: zipfile.ZipFile, folder: str, known: dict[str, np.ndarray], pid: object) -> Storage:
    match pid:
        case ("storage", element, str(key), _, numel):
            dtype = numpy_dtype(element)
            if key not in known:
                known[key] = np.frombuffer(archive.read(folder + key), np.uint8)
            if natural(numel) * dtype.itemsize != known[key].size:
                raise ValueError(f"damaged, storage {key[:20]!r} has {known[key].size} bytes for {numel} of {dtype}")
            return Storage(known[key], dtype)
    raise ValueError("refused, its pickle refers to something other than a storage")


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, once they are known to be no larger together than the file of `size` bytes."""
    entries = {info.filename: info for info in archive.infolist()}
    if len(entries) != len(archive.infolist()):
        raise ValueError("refused, two of its entries have one name")
    for name, info in entries.items():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"refused, {name[:60]!r} is compressed, which PyTorch never does")
    if sum(info.file_size for info in entries.values()) > size:
        raise ValueError("refused, its entries overlap")
    return entries
