"""Files that PyTorch itself wrote, in its new and its old format."""

import collections

import numpy as np
import pytest

from jaxdiff.pretrained import torch_legacy, torch_zip
from jaxdiff.pretrained.weights import read_weights

torch = pytest.importorskip("torch", reason="needs the extra parity")

NEW = {"zip": True, "legacy": False}
FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64", "complex128"]
DTYPES = [*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool"]
ONLY_NEW = ["uint16", "uint32", "float8_e4m3fn", "float8_e5m2"]


def through(path, value, container, **kwargs):
    torch.save(value, path, _use_new_zipfile_serialization=NEW[container], **kwargs)
    return (torch_zip if NEW[container] else torch_legacy).read(path)


@pytest.mark.parametrize("container", NEW)
def test_every_type_round_trips(tmp_path, container):
    names = DTYPES + (ONLY_NEW if container == "zip" else [])
    tensors = {name: torch.tensor([[0, 1, 2], [3, 4, 100]]).to(getattr(torch, name)) for name in names}
    for name, array in through(tmp_path / "x.pth", tensors, container).items():
        assert str(array.dtype) == name
        np.testing.assert_array_equal(array.astype(complex), tensors[name].to(torch.complex128).numpy())


@pytest.mark.parametrize("container", NEW)
def test_views_and_containers_are_as_saved(tmp_path, container):
    whole = torch.arange(24.0).reshape(2, 3, 4)
    views = [whole, whole.permute(2, 0, 1), whole[1, ::2, 1::2], whole[1, 2, 3], whole[0].expand(5, 3, 4), whole[:, :0]]
    state = collections.OrderedDict(a=torch.nn.Parameter(whole), b={"n": 3, "s": "x", "t": (1.5, None, True)})
    found_views, found_state, size = through(tmp_path / "x.pth", (views, state, whole.shape), container)
    for found, view in zip(found_views, views, strict=True):
        np.testing.assert_array_equal(found, view.numpy())
    np.testing.assert_array_equal(found_state["a"], whole.numpy())
    assert found_state["b"] == {"n": 3, "s": "x", "t": (1.5, None, True)}
    assert size == (2, 3, 4)


@pytest.mark.parametrize("container", NEW)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts_of_modules_in_every_pickle_protocol(tmp_path, container, protocol):
    net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    path = tmp_path / "x.pth"
    through(path, {"state": net.state_dict(), "epoch": 2}, container, pickle_protocol=protocol)
    found = read_weights(path)
    assert list(found) == [f"state.{name}" for name in net.state_dict()]
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(found[f"state.{name}"], value.numpy())


@pytest.mark.parametrize("container", NEW)
def test_whole_modules_are_refused(tmp_path, container):
    with pytest.raises(ValueError, match=r"names torch\.nn\.modules\.\w+\.\w+, which is no array"):
        through(tmp_path / "x.pth", torch.nn.Linear(2, 3), container)


def test_compiled_modules_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.jit.script(torch.nn.Linear(2, 3)).save(path)
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
