"""No file from the internet can run code, whatever container it comes in."""

import os
import pickle
import re

import numpy as np
import pytest

from jaxdiff.pretrained.weights import read_weights


class Evil:
    """Unpickled as usual, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refused(path, match):
    """`read_weights` refuses the file, in one line that names it."""
    with pytest.raises(ValueError, match=match) as caught:
        read_weights(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message


@pytest.fixture(params=["zip", "legacy", "plain"])
def written(request, tmp_path, forge):
    """``(value) -> path`` of a file that holds the value and no storages, in each of three containers."""

    def write(value):
        path = tmp_path / "weights.pth"
        if request.param == "zip":
            return forge.write_zip(path, value, {})
        if request.param == "legacy":
            return forge.write_legacy(path, value, {})
        path.write_bytes(forge.pickled(value))
        return path

    return write


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, forge, written, protocol):
    marker = tmp_path / "ran"
    body = pickle.dumps(Evil(marker), protocol)
    # The danger is real.
    pickle.loads(body)
    assert marker.exists()
    marker.unlink()
    opcodes = body[2:-1] if protocol < 4 else body[11:-1]  # without its header, frame and STOP
    refused(written({"weight": forge.Raw(opcodes)}), r"names (posix|nt)\.system")
    assert not marker.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("collections", "OrderedDict.fromkeys"),
        ("numpy", "load"),
        ("torch.nn.modules.linear", "Linear"),
    ],
)
def test_every_other_name_is_refused_by_name(forge, written, module, name):
    refused(written({"a": forge.Global(module, name)}), re.escape(f"names {module}.{name},"))


@pytest.mark.parametrize(
    "opcode, name",
    [
        (b"(ios\nsystem\n", "INST"),
        (b"(cos\nsystem\no", "OBJ"),
        (b"ccollections\nOrderedDict\n)}\x92", "NEWOBJ_EX"),
        (b"\x82\x01", "EXT1"),
        (b"\x8f", "EMPTY_SET"),
        (b"Pany\n", "PERSID"),
    ],
)
def test_opcodes_that_arrays_do_not_need_are_refused(forge, written, opcode, name):
    refused(written({"a": forge.Raw(opcode)}), f"uses {name}")


def test_nothing_can_be_set_on_what_a_pickle_gets(forge, written):
    builder, attributes = forge.encoded(forge.Global(*forge.ORDERED)), forge.encoded((None, {"build": "x", "a": 1}))
    refused(written({"a": forge.Raw(builder + attributes + b"b")}), "OrderedDict|attribute")


def test_no_instance_is_made_even_of_what_may_be_named(forge, written):
    refused(written({"a": forge.Raw(b"ccollections\nOrderedDict\n)\x81")}), "NEWOBJ|OrderedDict")


def test_a_refusal_cannot_write_to_the_terminal(forge, written):
    # Protocol 4 may name anything at all, a line break and an escape sequence included.
    path = written({"a": forge.Raw(forge.encoded("os\n\x1b[2J") + forge.encoded("x" * 10**5) + b"\x93")})
    with pytest.raises(ValueError, match=re.escape("names os ?[2J")) as caught:
        read_weights(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_memory_is_bounded_by_the_file(forge, written):
    # A memo index of 2**31 makes pickle allocate that many slots.
    refused(written({"a": forge.Raw(b"Nr\xff\xff\xff\x7f")}), "asks for memo 2147483647")


def test_a_small_file_cannot_unfold_into_a_huge_tree(forge, written):
    # Each dictionary holds the one before it twice: 2**60 leaves.
    opcodes, a, b = b"}q\x00", forge.encoded("a"), forge.encoded("b")
    for i in range(1, 60):
        opcodes = b"}" + a + opcodes + b"s" + b + b"h%cs" % (i - 1) + b"q%c" % i
    refused(written({"x": forge.Raw(opcodes)}), "twice")


def test_plain_values_beside_arrays_do_not_matter_and_files_without_arrays_are_refused(forge, written):
    refused(written({"epoch": 3, "name": "x", "list": [1, 2.5, None, True]}), "holds no arrays")


def test_plain_pickles_of_numpy_arrays(tmp_path):
    rng = np.random.default_rng(0)
    tree = {"A": {"kernel": rng.normal(size=(3, 4)).astype("f4").T, "n": rng.integers(0, 9, 5)}, "h": np.float16([1])}
    for protocol in (2, 3, 4):
        path = tmp_path / f"{protocol}.ckpt"
        path.write_bytes(pickle.dumps(tree, protocol))
        if protocol == 2:  # which spells bytes as a call of _codecs.encode
            refused(path, "_codecs.encode")
            continue
        found = read_weights(path)
        assert list(found) == ["A.kernel", "A.n", "h"]
        np.testing.assert_array_equal(found["A.kernel"], tree["A"]["kernel"])
        np.testing.assert_array_equal(found["A.n"], tree["A"]["n"])


@pytest.mark.parametrize("array", [np.array([{}, []], object), np.zeros(2, "f4,i4"), np.zeros(2, ">f4")])
def test_numpy_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    path = tmp_path / "x.ckpt"
    path.write_bytes(pickle.dumps({"a": array}, 3))
    refused(path, "not supported")
