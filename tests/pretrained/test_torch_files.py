"""PyTorch's two containers, written here without PyTorch (tests/parity has files of its own making)."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.pretrained import torch_legacy, torch_zip
from jaxdiff.pretrained.weights import read_weights

KINDS = {
    "DoubleStorage": jnp.float64,
    "FloatStorage": jnp.float32,
    "HalfStorage": jnp.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": jnp.int64,
    "IntStorage": jnp.int32,
    "ShortStorage": jnp.int16,
    "CharStorage": jnp.int8,
    "ByteStorage": jnp.uint8,
    "BoolStorage": jnp.bool_,
    "ComplexFloatStorage": jnp.complex64,
    "ComplexDoubleStorage": jnp.complex128,
}
DATA = np.arange(24, dtype=np.float32)


@pytest.fixture(params=["zip", "legacy"])
def one(request, tmp_path, forge):
    """``(offset, size, stride, kind, data) -> array``: a tensor through a file of each container."""

    def through(offset, size, stride, kind="FloatStorage", data=DATA, numel=None):
        legacy = request.param == "legacy"
        where = forge.storage(kind, "7", data.size if numel is None else numel, legacy)
        tree = {"x": forge.tensor(where, offset, size, stride)}
        path = tmp_path / "x.pth"
        if legacy:
            return torch_legacy.read(forge.write_legacy(path, tree, {"7": data}))["x"]
        return torch_zip.read(forge.write_zip(path, tree, {"7": data.tobytes()}))["x"]

    return through


@pytest.mark.parametrize("kind, dtype", KINDS.items())
def test_every_type_round_trips(one, kind, dtype):
    data = np.array([0, 1, 2, 3, 100, 7]).astype(dtype)
    found = one(0, (2, 3), (3, 1), kind, data)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, data.reshape(2, 3))


def test_views_are_those_of_numpy(one):
    whole = DATA.reshape(2, 3, 4)
    np.testing.assert_array_equal(one(0, (2, 3, 4), (12, 4, 1)), whole)
    np.testing.assert_array_equal(one(0, (4, 3, 2), (1, 4, 12)), whole.T)
    np.testing.assert_array_equal(one(13, (2, 2), (8, 2)), whole[1, ::2, 1::2])
    np.testing.assert_array_equal(one(23, (), ()), whole[1, 2, 3])
    np.testing.assert_array_equal(one(20, (3, 4), (0, 1)), np.broadcast_to(whole[1, 2], (3, 4)))
    assert one(0, (0, 5), (5, 1)).shape == (0, 5)


def test_arrays_are_read_only(one):
    with pytest.raises(ValueError, match="read-only"):
        one(0, (2, 3), (3, 1))[0] = 1


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (24, (), ()),
        (0, (2, 3), (22, 1)),
        (0, (3,), (2**62,)),
        (2**62, (1,), (1,)),
        (-1, (3,), (1,)),
        (0, (3,), (-1,)),
        (3, (4,), (-1,)),
        (0, (-1, -3), (1, 1)),
        (0, (2, 3), (1,)),
        (0, (2.0,), (1,)),
        (True, (2,), (1,)),
        (0, [2], (1,)),
        (0, (2**40, 2**40), (0, 0)),
    ],
)
def test_tensors_that_leave_their_storage_are_refused(one, offset, size, stride):
    with pytest.raises(ValueError, match=r"x\.pth: "):
        one(offset, size, stride)


@pytest.mark.parametrize("numel", [23, 25, 2**40, -1, "24"])
def test_storages_of_another_size_are_refused(one, numel):
    with pytest.raises(ValueError, match=r"x\.pth: "):
        one(0, (2,), (1,), numel=numel)


def test_containers_parameters_and_shared_storages(forge, tmp_path):
    where = forge.storage("FloatStorage", "0", 24)
    first = forge.tensor(where, 0, (24,), (1,))
    parameter = forge.Call(forge.Global("torch._utils", "_rebuild_parameter"), (first, True, None))
    ordered = forge.Call(forge.Global(*forge.ORDERED), ())
    # What a state dict is: an OrderedDict given items, then the attribute _metadata.
    state = forge.Raw(
        forge.encoded(ordered) + b"(" + forge.encoded("w") + forge.encoded(parameter) + b"u"
        + forge.encoded({"_metadata": {"version": 1}}) + b"b"
    )  # fmt: skip
    tree = {"model": {"net": state}, "list": [forge.tensor(where, 4, (2,), (1,)), "a", 1.5], "step": 7}
    path = forge.write_zip(tmp_path / "x.pth", tree, {"0": DATA.tobytes()}, byteorder=None)
    found = torch_zip.read(path)
    assert found["step"] == 7 and found["list"][1:] == ["a", 1.5]
    np.testing.assert_array_equal(found["list"][0], DATA[4:6])
    np.testing.assert_array_equal(found["model"]["net"]["w"], DATA)
    # Flat, with arrays alone.
    assert list(read_weights(path)) == ["model.net.w"]


def test_types_without_a_storage_of_their_own(forge, tmp_path):
    values = np.array([1, 2, 60000], np.uint16)
    where = forge.Outside(("storage", forge.Global("torch.storage", "UntypedStorage"), "0", "cpu", 6))
    args = (where, 1, (2,), (1,), False, None, forge.Global("torch", "uint16"))
    tree = {"x": forge.Call(forge.Global("torch._utils", "_rebuild_tensor_v3"), args)}
    path = forge.write_zip(tmp_path / "x.pth", tree, {"0": values.tobytes()})
    np.testing.assert_array_equal(torch_zip.read(path)["x"], values[1:])


def test_archives_that_pytorch_would_not_write_are_refused(forge, tmp_path):
    tree = {"x": forge.tensor(forge.storage("FloatStorage", "0", 24), 0, (24,), (1,))}
    path, data = tmp_path / "x.pth", {"0": DATA.tobytes()}

    def refused(match):
        with pytest.raises(ValueError, match=match):
            torch_zip.read(path)

    forge.write_zip(path, tree, data, compression=zipfile.ZIP_DEFLATED)
    refused("compressed")
    forge.write_zip(path, tree, data, byteorder=b"big")
    refused("little-endian")
    forge.write_zip(path, tree, {})
    refused("no item named")
    forge.write_zip(path, {"x": forge.Outside(("module", "a", "b", "c"))}, data)
    refused("other than a storage")
    forge.write_zip(path, tree, data)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("any/data/0", DATA[::-1].tobytes())
    refused("one name")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused("no data.pkl")
    forge.write_legacy(path, tree, {}, little=False)
    with pytest.raises(ValueError, match="little-endian"):
        torch_legacy.read(path)


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_damage_is_a_value_error_or_harmless(forge, tmp_path, container):
    """A flipped byte or a cut end leaves arrays, or one line about this file: nothing else is raised."""
    path = tmp_path / "x.pth"
    legacy = container == "legacy"
    tree = {"x": forge.tensor(forge.storage("FloatStorage", "0", 24, legacy), 0, (4, 6), (6, 1)), "n": [1, "two"]}
    if legacy:
        forge.write_legacy(path, tree, {"0": DATA})
    else:
        forge.write_zip(path, tree, {"0": DATA.tobytes()})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"arrays": 0, "refused": 0}
    for _ in range(150):
        bad = bytearray(good)
        if rng.random() < 0.2:
            bad = bad[: rng.integers(len(bad))]
        else:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            assert all(isinstance(array, np.ndarray) for array in read_weights(path).values())
            outcomes["arrays"] += 1
        except ValueError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
