"""Writes PyTorch files without PyTorch, honest and forged ones: a pickle is spelled out opcode by opcode."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

ORDERED = "collections", "OrderedDict"
REBUILD = "torch._utils", "_rebuild_tensor_v2"


class Global(NamedTuple):
    """The thing that a pickle names."""

    module: str
    name: str


class Call(NamedTuple):
    """What the thing returns for the arguments."""

    function: Global
    args: tuple


class Outside(NamedTuple):
    """A persistent id."""

    pid: object


class Raw(NamedTuple):
    """Opcodes as they are."""

    opcodes: bytes


def encoded(value: object) -> bytes:
    match value:
        case Raw(opcodes):
            return opcodes
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args):
            return encoded(function) + encoded(args) + b"R"
        case Outside(pid):
            return encoded(pid) + b"Q"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            body = value.to_bytes(9, "little", signed=True)
            return b"\x8a" + bytes([len(body)]) + body
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            body = value.encode()
            return b"X" + struct.pack("<I", len(body)) + body
        case tuple():
            return b"(" + b"".join(map(encoded, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encoded, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encoded(k) + encoded(v) for k, v in value.items()) + b"u"
    raise TypeError(value)


def pickled(value: object) -> bytes:
    return b"\x80\x02" + encoded(value) + b"."


def storage(kind: str, key: str, numel: object, legacy: bool = False) -> Outside:
    pid = ("storage", Global("torch", kind), key, "cpu", numel)
    return Outside((*pid, None) if legacy else pid)


def tensor(where: Outside, offset: object, size: object, stride: object) -> Call:
    return Call(Global(*REBUILD), (where, offset, size, stride, False, Call(Global(*ORDERED), ())))


def write_zip(
    path: Path,
    value: object,
    storages: Mapping[str, bytes],
    byteorder: bytes | None = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("any/data.pkl", pickled(value))
        if byteorder is not None:
            archive.writestr("any/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"any/data/{key}", data)
        archive.writestr("any/version", b"3\n")
    return path


def write_legacy(path: Path, value: object, storages: Mapping[str, np.ndarray], little: bool = True) -> Path:
    parts = [
        pickle.dumps(0x1950A86A20F9469CFC6C, 2),
        pickle.dumps(1001, 2),
        pickle.dumps({"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}, 2),
        pickled(value),
        pickle.dumps(list(storages), 2),
        *(struct.pack("<q", data.size) + data.tobytes() for data in storages.values()),
    ]
    path.write_bytes(b"".join(parts))
    return path
