"""Files known by their content, and arrays that become parameters only if they are exactly those of the network."""

import hashlib
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.networks.frozen import DepthwiseConv, FrozenBatchNorm, frozen_conv
from jaxdiff.pretrained.weights import fill, read_weights, same_layout, sha256

RNG = np.random.default_rng(0)


def write_safetensors(path, arrays):
    """The format in its own words: the header's length, a JSON header, the bytes."""
    header, body = {}, b""
    for name, (code, array) in arrays.items():
        span = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


def test_safetensors_of_every_float(tmp_path):
    values = RNG.normal(size=(2, 3))
    kinds = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16, "I8": jnp.int8}
    arrays = {code: (code, values.astype(dtype)) for code, dtype in kinds.items()}
    found = read_weights(write_safetensors(tmp_path / "named.pth", arrays))
    for code, dtype in kinds.items():
        assert found[code].dtype == dtype
        np.testing.assert_array_equal(found[code], values.astype(dtype))


@pytest.mark.parametrize("first", [0x80, 0x90, 0x50])
def test_a_safetensors_header_of_any_length_is_read(first, tmp_path):
    """Its length comes first, and its lowest byte may be the one that begins a pickle."""
    array = np.arange(3, dtype=np.float32)
    path = write_safetensors(tmp_path / "a.safetensors", {"a": ("F32", array)})
    length, rest = struct.unpack("<Q", path.read_bytes()[:8])[0], path.read_bytes()[8:]
    blanks = (first - length) % 256
    path.write_bytes(struct.pack("<Q", length + blanks) + rest[:length] + b" " * blanks + rest[length:])
    assert path.read_bytes()[0] == first
    np.testing.assert_array_equal(read_weights(path)["a"], array)


def test_files_of_no_known_kind_are_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.safetensors"
    for content in (b"", b"hello", b"\x89PNG" * 9, struct.pack("<Q", 10) + b"{" + b"x" * 20, b"PK\x03\x04" + bytes(99)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S*weights\.safetensors: .+$"):
            read_weights(path)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "absent")


def test_sha256_is_the_files(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


def shapes_of(module, image):
    return jax.eval_shape(module.init, jax.random.key(0), image)["params"]


@pytest.mark.parametrize("groups", [1, 6])
def test_a_convolution_means_what_it_means_in_pytorch(groups):
    """out[o] = sum over i, y, x of weight[o, i, y, x] image[i, y, x], as PyTorch defines it."""
    image = jnp.asarray(RNG.normal(size=(3, 3, 6)), jnp.float32)
    if groups == 1:
        module, weight = frozen_conv(4, (3, 3), "c", padding="VALID"), RNG.normal(size=(4, 6, 3, 3))
        expected = np.einsum("oiyx,yxi->o", weight, image)
        middle = (0, 0, 0)
    else:
        module, weight = DepthwiseConv(3), RNG.normal(size=(6, 1, 3, 3))
        expected = np.einsum("oyx,yxo->o", weight[:, 0], image)
        middle = (0, 1, 1)
    params = fill({"weight": weight}, shapes_of(module, image[None]))
    out = module.apply({"params": params}, image[None])
    np.testing.assert_allclose(out[middle], expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_normalises_to_scale_and_bias():
    image = jnp.asarray(RNG.normal(3, 2, size=(50, 9, 9, 2)), jnp.float32)
    shapes = shapes_of(FrozenBatchNorm(), image)
    arrays = {"weight": np.array([2, 3]), "bias": np.array([5, 7.0])}
    arrays |= {"running_mean": np.asarray(image).mean((0, 1, 2)), "running_var": np.asarray(image).var((0, 1, 2))}
    out = FrozenBatchNorm(1e-9).apply({"params": fill(arrays, shapes)}, image)
    np.testing.assert_allclose(out.mean((0, 1, 2)), [5, 7], rtol=1e-4)
    np.testing.assert_allclose(out.std((0, 1, 2)), [2, 3], rtol=1e-4)


def test_every_fault_is_named():
    shapes = {
        "a": {"kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32), "bias": jax.ShapeDtypeStruct((5,), jnp.float32)}
    }
    good = {"a.weight": np.zeros((5, 3)), "a.bias": np.zeros(5)}
    filled = fill(good, shapes)
    assert jax.tree.map(jnp.shape, filled) == {"a": {"kernel": (3, 5), "bias": (5,)}}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(filled))
    with pytest.raises(ValueError) as caught:
        fill({"a.weight": np.zeros((3, 5)), "b.weight": np.zeros(2), "c.bias": np.zeros(1)}, shapes)
    message = str(caught.value)
    for fault in ("a.bias is missing", "b.weight is not known", "c.bias is not known", "a.weight is [3, 5]", "[5, 3]"):
        assert fault in message
    assert "\n" not in message
    fill({**good, "a.num_batches_tracked": np.zeros(())}, shapes, unused=("num_batches_tracked",))
    fill({"a.kernel": np.zeros((3, 5)), "a.bias": np.zeros(5)}, shapes, ".".join, same_layout)
