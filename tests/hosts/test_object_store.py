"""What is written beside the checkpoints goes to an object store as to a disk. The store is fsspec's, in memory."""

import io
import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from etils.epath import backend as backends
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import train
from jaxdiff.commands import evaluate, reference, sweep
from jaxdiff.config import to_json
from jaxdiff.core.grids import Table
from jaxdiff.data import Data, open_source
from jaxdiff.data.records import Array, Header, pack
from jaxdiff.data.shards import shard_name, write_header, write_shard
from jaxdiff.evaluation import moments, store
from jaxdiff.evaluation.moments import Gaussian, Statistics
from jaxdiff.fitted_grids import fitted_grid, read_fitted_grid
from jaxdiff.outputs import prepare_out
from jaxdiff.training.monitor import Diverged, Monitor
from jaxdiff.training.workdir import prepare_workdir, read_config


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]  # not those of memory://

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/") if str(path).strip("/") else ""


@pytest.fixture
def bucket(monkeypatch) -> epath.Path:
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    backend = backends._FileSystemSpecBackend()
    monkeypatch.setattr(backend, "_get_filesystem", lambda name: Bucket())
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", backend)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    folder = epath.Path("gs://bucket/run")
    folder.mkdir(parents=True)
    return folder


def test_flags_keep_both_slashes():
    run = train.read_command(["smileys", "--workdir", "gs://bucket/run"])
    assert str(run.workdir) == "gs://bucket/run"


def test_a_run_keeps_its_config(bucket):
    config = {"config": {"type": "Config", "steps": 3}}
    prepare_workdir(bucket, config)
    prepare_workdir(bucket, config)
    assert read_config(bucket) == config
    with pytest.raises(ValueError, match="steps = 3, this one has 4"):
        prepare_workdir(bucket, {"config": {"type": "Config", "steps": 4}})
    assert [p.name for p in bucket.iterdir()] == ["config.json"]


def test_a_monitor_writes_everything(bucket):
    monitor = Monitor(bucket, 0, 4, 8, every=1)
    for step in range(1, 4):
        monitor.push(step, {"loss": jnp.float32(0.5), "grad_norm": jnp.float32(1.0)})
    for step in (2, 3):
        monitor.validation(step, jnp.array([2.0]), np.array([0.1]))
    monitor.preview(3, np.zeros((3, 4, 4, 3), np.uint8))
    monitor.bits_per_dim(3, 2.5, 10)
    with pytest.raises(Diverged, match=r"gs://bucket/run/diagnosis\.json"):
        monitor.push(4, {"loss": jnp.float32(jnp.nan), "grad_norm": jnp.float32(1.0)})
    monitor.close()
    records = [json.loads(line) for line in (bucket / "validation.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [2, 3, 3] and records[2]["bits_per_dim"] == 2.5
    assert json.loads((bucket / "diagnosis.json").read_text())["step"] == 4
    with (bucket / "samples" / "step_0000003.png").open("rb") as file:
        assert Image.open(file).size == (14, 14)
    (log,) = (bucket / "logs").iterdir()
    assert len(log.read_bytes()) > 200
    names = {p.name for p in bucket.iterdir()}
    assert names == {"validation.jsonl", "diagnosis.json", "samples", "logs"}


def test_features_are_kept_and_read_again(bucket):
    calls = []

    def make(indices):
        calls.append(len(indices))
        return {"a/b": indices.astype(np.float32)}

    for _ in range(2):
        found = store.gather(bucket / "evaluations" / "x", ["a/b"], 300, make)
        np.testing.assert_array_equal(found["a/b"], np.arange(300))
    assert calls == [256, 44]


def test_statistics_records_tables_and_grids(bucket):
    file = bucket / "reference.npz"
    statistics = Statistics(Gaussian(np.zeros(2), np.eye(2)), None, 7, "net")
    moments.save(file, statistics)
    assert moments.load(file).n == 7 and reference.has_statistics(str(file))
    evaluate.write_json(evaluate.evaluations(bucket) / "r.json", {"a": 1})
    prepare_workdir(bucket.parent / "other", {"steps": 1})
    assert evaluate.evaluations(bucket.parent / "other") == bucket.parent / "other" / "evaluations"
    record = {"point": {"steps": "4"}, "metrics": {"psnr": {"value": 1.0}}}
    sweep.write(bucket / "e", {"sweep": {"steps": ("4",)}, "records": [record]})
    assert len(list((bucket / "e").iterdir())) == 3
    evaluate.write_json(fitted_grid(bucket, 2), {"grid": to_json(Table((2.0, 1.0)))})
    assert read_fitted_grid(bucket, 2) == Table((2.0, 1.0))
    assert prepare_out("gs://bucket/out") == epath.Path("gs://bucket/out")


def test_data_lie_in_a_bucket(bucket, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(picture, "PNG")
    folder = bucket.parent / "set"
    for name in ("cats/a.png", "cats/b.png", "dogs/c.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture.getvalue())
    source = open_source(Data(str(folder), 4))
    assert len(source) == 3 and source.label_names == ("cats", "dogs") and source[2]["label"] == 1
    assert (source[0]["image"] == 7).all()

    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("x.png", picture.getvalue())
    (bucket.parent / "set.zip").write_bytes(whole.getvalue())
    assert (open_source(Data(f"{bucket.parent}/set.zip", 4))[0]["image"] == 7).all()

    whole = io.BytesIO()
    np.savez(whole, images=np.full((2, 4, 4, 3), 9, np.uint8))
    (bucket.parent / "set.npz").write_bytes(whole.getvalue())
    assert (open_source(Data(f"{bucket.parent}/set.npz", 4))[1]["image"] == 9).all()


def test_records_of_a_bucket_are_copied_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arrays = (Array("image", "uint8", (4, 4, 3)),)
    here = tmp_path / "records"
    here.mkdir()
    write_shard(here, 0, 1, [(pack(arrays, {"image": np.full((4, 4, 3), 5, np.uint8)}), None)])
    write_header(here, Header(1, (shard_name(0, 1),), arrays, False, (), None, {}))
    there = bucket.parent / "records"
    there.mkdir(parents=True)
    for file in here.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    for _ in range(2):
        assert (open_source(Data(f"records:{there}", 4))[0]["image"] == 5).all()
    assert len(list((tmp_path / "cache").rglob("*.array_record"))) == 1
