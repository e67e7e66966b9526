"""Precomputed sets: what a record holds, how it is read, and what cannot be done with latents."""

import itertools
import json
import pickle

import numpy as np
import pytest

from jaxdiff.data import Data, batches, header_of, open_source, open_validation, validation_batches
from jaxdiff.data.records import Array, Header, Latents, pack, unpack
from jaxdiff.data.shards import (
    Sums,
    begin,
    is_whole,
    joined,
    mean_and_std,
    places,
    read_sums,
    shard_name,
    sums,
    write_header,
    write_shard,
)

N, SHARDS = 23, 3
RNG = np.random.default_rng(0)
Z = (RNG.standard_normal((N, 4, 4, 6)) * np.arange(1, 7) - 2).astype(np.float16)
MIRRORED = (Z * 0.5).astype(np.float16)
TOKENS = RNG.standard_normal((N, 5, 3)).astype(np.float16)
MASK = (np.arange(5) < 2 + np.arange(N)[:, None] % 4).astype(np.uint8)
ARRAYS = (
    Array("image", "float16", (4, 4, 6)),
    Array("flipped", "float16", (4, 4, 6)),
    Array("label", "int32", ()),
    Array("text_tokens", "float16", (5, 3)),
    Array("text_mask", "uint8", (5,)),
    Array("text_pooled", "float16", (3,)),
)


def values(i):
    return {
        "image": Z[i],
        "flipped": MIRRORED[i],
        "label": np.int32(i % 2),
        "text_tokens": TOKENS[i],
        "text_mask": MASK[i],
        "text_pooled": TOKENS[i, 0],
    }


def write(folder, arrays=ARRAYS, latents=True):
    folder.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        rows = ((pack(arrays, values(i), f"écru {i}"), sums(Z[i][None])) for i in places(shard, SHARDS, N))
        write_shard(folder, shard, SHARDS, rows)
    moments = mean_and_std(read_sums(folder, SHARDS))
    found = Latents("taef2", ("ab",), 8, *moments) if latents else None
    names = tuple(shard_name(k, SHARDS) for k in range(SHARDS))
    write_header(folder, Header(N, names, arrays, True, ("even", "odd"), found, {"source": "test"}))
    return f"records:{folder}"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    return write(tmp_path_factory.mktemp("records") / "set")


def test_a_record_is_its_arrays_and_its_caption():
    found, caption = unpack(ARRAYS, pack(ARRAYS, values(3), "ein Kätzchen"))
    assert caption == "ein Kätzchen"
    for name, value in values(3).items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(ValueError, match="fewer"):
        unpack(ARRAYS, pack(ARRAYS, values(3))[:-1])
    with pytest.raises(ValueError, match=r"label has the shape \[1\]"):
        pack(ARRAYS, values(3) | {"label": np.zeros(1)})


def test_latents_are_read_in_order_with_unit_variance(spec):
    source = open_source(Data(spec, 4, 6))
    assert len(source) == N and source.label_names == ("even", "odd")
    assert pickle.loads(pickle.dumps(source))[4]["text"] == source[4]["text"] == "écru 4"
    images = np.stack([source[i]["image"] for i in range(N)])
    assert images.dtype == np.float32 and [source[i]["label"] for i in range(3)] == [0, 1, 0]
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1, atol=1e-5)
    latents = header_of(Data(spec, 4, 6)).latents
    np.testing.assert_allclose(images * np.float32(latents.std) + np.float32(latents.mean), Z, atol=2e-3)


def test_batches_of_latents_go_around_the_uint8_path(spec):
    data = Data(spec, 4, 6, flip=True, text=True)
    source, plain = open_source(data), open_source(Data(spec, 4, 6))
    stream = batches(data, source, 5, 0)
    taken = list(itertools.islice(stream, 10))
    stream.close()
    mean, std = (np.float32(v) for v in (plain.header.latents.mean, plain.header.latents.std))
    mirrored = 0
    for batch in taken:
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            "image": ((5, 4, 4, 6), "float32"), "label": ((5,), "int32"), "text_tokens": ((5, 5, 3), "float32"),
            "text_mask": ((5, 5), "float32"), "text_pooled": ((5, 3), "float32"),
        }  # fmt: skip
        for image, tokens, mask in zip(batch["image"], batch["text_tokens"], batch["text_mask"], strict=True):
            i = int(np.flatnonzero((tokens == TOKENS).all((1, 2)))[0])
            np.testing.assert_array_equal(mask, MASK[i])
            as_it_is, other = ((z[i].astype(np.float32) - mean) / std for z in (Z, MIRRORED))
            assert np.array_equal(image, as_it_is) or np.array_equal(image, other)
            mirrored += np.array_equal(image, other)
    assert 10 < mirrored < 40
    again = batches(data, source, 5, 0, start=7)
    np.testing.assert_array_equal(next(again)["image"], taken[7]["image"])
    again.close()


def test_validation_pads_with_zeros(spec):
    data = Data(spec, 4, 6, holdout=0.3, text=True)
    held, trained = open_validation(data), open_source(data)
    assert len(held) == 7 and len(trained) == N - 7
    *_, last = validation_batches(data, held, 4)
    assert last["mask"].tolist() == [True, True, True, False] and last["image"].dtype == np.float32
    np.testing.assert_array_equal(last["image"][2], held[6]["image"])
    np.testing.assert_array_equal(last["text_mask"][2], held[6]["text_mask"])
    assert not last["image"][3].any() and not last["text_tokens"][3].any() and last["text_tokens"][2].any()


def test_records_of_pixels_are_pixels(tmp_path):
    arrays = (Array("image", "uint8", (8, 8, 3)),)
    images = RNG.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    write_shard(tmp_path, 0, 1, ((pack(arrays, {"image": image}), None) for image in images))
    assert read_sums(tmp_path, 1) is None
    write_header(tmp_path, Header(4, (shard_name(0, 1),), arrays, False, (), None, {}))
    source = open_source(Data(f"records:{tmp_path}", 8))
    np.testing.assert_array_equal(source[2]["image"], images[2])
    assert set(source[0]) == {"image"}
    stream = batches(Data(f"records:{tmp_path}", 4, flip=True, augment=0.5, crop="random"), source, 3, 0)
    assert next(stream)["image"].shape == (3, 4, 4, 3)
    stream.close()


def test_what_latents_do_not_allow_is_refused(spec, tmp_path, refused):
    message = refused(ValueError, open_source, Data(spec, 32))
    assert "4 x 4 x 6" in message and "--data.size 4 --data.channels 6" in message
    for flag, data in (
        ("--data.augment", Data(spec, 4, 6, augment=0.1)),
        ("--data.crop random", Data(spec, 4, 6, crop="random")),
        ("--data.split", Data(spec, 4, 6, split="test")),
        ("--data.flip", Data(write(tmp_path / "plain", ARRAYS[:1]), 4, 6, flip=True)),
    ):
        assert flag in refused(ValueError, open_source, data)
    assert "--data.channels" in refused(ValueError, Data, "emoji", 32, 6)


def test_a_set_that_is_not_whole_is_refused(tmp_path, refused):
    assert "features.json" in refused(FileNotFoundError, open_source, Data(f"records:{tmp_path / 'no'}", 4, 6))
    spec = write(tmp_path / "set")
    (tmp_path / "set" / shard_name(1, SHARDS)).rename(tmp_path / "away")
    assert shard_name(1, SHARDS) in refused(FileNotFoundError, open_source, Data(spec, 4, 6))
    (tmp_path / "set" / shard_name(1, SHARDS)).write_bytes((tmp_path / "set" / shard_name(0, SHARDS)).read_bytes())
    assert "22 records" in refused(ValueError, open_source, Data(spec, 4, 6))
    (tmp_path / "set" / shard_name(1, SHARDS)).write_bytes(b"something else")
    assert "--data.source" in refused(ValueError, open_source, Data(spec, 4, 6))
    header = tmp_path / "set" / "features.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"version": 9}))
    assert "version is 9" in refused(ValueError, open_source, Data(spec, 4, 6))


@pytest.mark.parametrize(("shards", "count"), [(1, 5), (3, 23), (16, 17), (7, 7)])
def test_every_example_is_in_one_shard(shards, count):
    rows = [places(k, shards, count) for k in range(shards)]
    assert list(itertools.chain(*rows)) == list(range(count)) and all(len(row) for row in rows)


def test_moments_of_shards_are_those_of_the_set():
    parts = [sums(Z[places(k, 4, N)]) for k in range(4)]
    mean, std = mean_and_std(joined(parts))
    np.testing.assert_allclose(mean, Z.astype(float).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, Z.astype(float).std((0, 1, 2)), rtol=1e-9)
    assert mean_and_std(Sums(4, np.full(1, 8.0), np.full(1, 16.0)))[1] == (1.0,)


def test_a_shard_is_whole_or_absent(tmp_path):
    def stops():
        yield pack(ARRAYS, values(0)), sums(Z[:1])
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(tmp_path, 0, 1, stops())
    assert not is_whole(tmp_path, 0, 1) and list(tmp_path.iterdir()) == []
    write_shard(tmp_path, 0, 1, [(pack(ARRAYS, values(0)), sums(Z[:1]))])
    assert is_whole(tmp_path, 0, 1) and len(list(tmp_path.iterdir())) == 2


def test_shards_of_another_recipe_are_not_mixed(tmp_path, refused):
    begin(tmp_path / "set", {"codec": ["taef2", "ab"], "batch_size": 4})
    begin(tmp_path / "set", {"codec": ("taef2", "ab"), "batch_size": 4})
    message = refused(ValueError, begin, tmp_path / "set", {"codec": ["taef2", "ab"], "batch_size": 8})
    assert "batch_size = 4" in message and "8" in message and "--batch-size" in message
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("do not touch")
    assert "thesis.tex" in refused(ValueError, begin, tmp_path / "other", {})
