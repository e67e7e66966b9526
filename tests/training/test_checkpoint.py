"""What is saved comes back bit for bit, or is found to be damaged; nothing that was good is lost."""

import functools
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxdiff.training import checkpoint, ema, restore
from jaxdiff.training.checkpoint import open_checkpoints
from jaxdiff.training.restore import DamagedError, read_params, read_posthoc
from jaxdiff.training.sharding import make_mesh
from jaxdiff.training.state import TrainState

AVERAGES = (ema.Decay(0.9), ema.Power(0.05))


def make_state(step=0, width=8):
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(step), (128, width)), "bias": jnp.ones(width)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    averages = ema.init(AVERAGES, jax.tree.map(lambda p: p + 1, params))
    return TrainState(jnp.int32(step), params, optimizer.init(params), averages)


def abstract(state, place=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place or x.sharding), state)


def bits(tree):
    return [(str(x.dtype), x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and bits(a) == bits(b)


@pytest.fixture
def opened(tmp_path):
    checkpoints = open_checkpoints(tmp_path / "run")
    yield checkpoints
    checkpoints.close()


def folder_of(checkpoints, step):
    return pathlib.Path(checkpoints.workdir) / "checkpoints" / str(step)


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, make_state(step), {"next": step * 64}, {"seed": step})
    checkpoints.wait()


def test_new_run_has_no_checkpoint(opened):
    assert opened.restore_latest(abstract(make_state())) is None
    assert (opened.steps(), opened.latest()) == ((), None)


def test_every_bit_and_the_structure_come_back(opened, caplog, capfd):
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000, 0x3F800001], np.uint32)
    params = {
        "a": {"odd": jnp.asarray(odd.view(np.float32)), "half": jnp.arange(5, dtype=jnp.bfloat16) / 3},
        "b": {"scalar": jnp.float32(1 / 3), "count": jnp.arange(-3, 3)},
    }
    averages = ema.init(AVERAGES, params)
    optimizer = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), 2)
    state = TrainState(jnp.int32(3), params, optimizer.init(params), averages)
    assert np.asarray(params["a"]["odd"]).tobytes() == odd.tobytes()
    data_state = {"next": 192, "nested": {"list": [1, 2.5, None, "x"]}}
    opened.save(3, state, data_state, {"seed": 0})
    opened.wait()
    step, got, got_data = opened.restore_latest(abstract(state))
    assert (step, got_data, opened.config(3)) == (3, data_state, {"seed": 0})
    assert type(got) is TrainState and same(got, state)
    assert not caplog.records and capfd.readouterr() == ("", "")  # Orbax is quiet


def test_saving_waits_for_nothing_and_shows_complete_checkpoints_only(opened, monkeypatch):
    save(opened, 1)
    go_on = threading.Event()
    sign = checkpoint.write_fingerprints
    monkeypatch.setattr(checkpoint, "write_fingerprints", lambda folder: go_on.wait(60) and sign(folder))
    opened.save(2, make_state(2), {}, {})  # returns although its writing cannot end yet
    assert opened.latest() == 1
    go_on.set()
    opened.wait()
    assert opened.latest() == 2


@pytest.mark.parametrize("devices", [1, 8])
def test_donated_buffers_are_saved_as_they_were(opened, devices, monkeypatch):
    mesh = make_mesh()
    place = NamedSharding(mesh, PartitionSpec()) if devices == 8 else SingleDeviceSharding(jax.devices()[0])
    state = jax.device_put(make_state(width=4096), place)
    want = bits(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    for _ in range(2):
        opened.wait()
        opened.save(int(state.step) + 1, state, {}, {})
        for _ in range(3):
            state = overwrite(state)
        jax.block_until_ready(state)
        opened.wait()
        step, got, _ = opened.restore_latest(abstract(state))
        assert bits(got) == want
        state = got  # what was restored may be donated, too
        shutil.rmtree(folder_of(opened, step))
        opened.states.reload()


def test_devices_may_change(opened):
    mesh = make_mesh()
    state = make_state()
    many = NamedSharding(mesh, PartitionSpec("data"))
    split = state._replace(params=jax.device_put(state.params, many))
    opened.save(1, split, {}, {})
    opened.wait()
    got, _ = opened.restore(1, abstract(state, NamedSharding(mesh, PartitionSpec())))
    assert same(got, state) and len(got.params["conv"]["bias"].devices()) == 8
    for average, want in ((None, state.params), (0, state.ema[0]), (1, state.ema[1])):
        alone = read_params(opened.workdir, 1, average)
        assert same(alone, want) and alone["conv"]["bias"].devices() == {jax.devices()[0]}


def test_reading_names_what_is_missing(opened):
    save(opened, 1, 5)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3, but of 1, 5 \(--step\)"):
        read_params(opened.workdir, 3)
    with pytest.raises(ValueError, match=r"average 2 must be in \[0, 2\)"):
        read_params(opened.workdir, 5, 2)
    with pytest.raises(FileNotFoundError, match="none at all"):
        restore.read_step_config(opened.workdir / "elsewhere", 1)
    assert restore.read_step_config(opened.workdir, 5) == {"seed": 5}


def test_retention_keeps_the_last_ones_and_every_nth(tmp_path):
    checkpoints = open_checkpoints(tmp_path, keep=2, keep_every=3)
    save(checkpoints, 1, 2, 3, 4, 5)
    assert checkpoints.steps() == (3, 4, 5)
    before = make_state(5)
    checkpoints.save(5, make_state(77), {}, {})  # left as it is
    checkpoints.close()
    assert checkpoints.steps() == (3, 4, 5)
    assert same(checkpoints.restore(5, abstract(before))[0], before)
    with pytest.raises(ValueError, match="keep = 0"):
        open_checkpoints(tmp_path, keep=0)


def test_half_written_checkpoint_is_passed_over(opened):
    save(opened, 1)
    folder = folder_of(opened, 1).parent
    shutil.copytree(folder / "1", folder / "2.orbax-checkpoint-tmp")  # what a kill leaves
    assert opened.steps() == (1,)
    again = open_checkpoints(opened.workdir)
    assert again.restore_latest(abstract(make_state()))[0] == 1
    assert sorted(p.name for p in folder.iterdir()) == ["1"]
    again.close()


def test_killed_process_leaves_good_checkpoints(tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from jaxdiff.training.checkpoint import open_checkpoints
from test_checkpoint import make_state
checkpoints = open_checkpoints({str(tmp_path)!r})
for step in range(1, 10_000):
    checkpoints.save(step, make_state(step), {{"next": step}}, {{}})
"""
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "3").exists() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()
    checkpoints = open_checkpoints(tmp_path)
    step, state, data_state = checkpoints.restore_latest(abstract(make_state()))
    assert step >= 3 and step == checkpoints.latest() and data_state == {"next": step}
    assert same(state, make_state(step))
    checkpoints.close()


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(bytes(len(content)))


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped", "zeroed"])
def test_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, how, caplog):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, 2)
    file = largest_file(tmp_path / "checkpoints" / "2" / "params")
    damage(file, how)
    step, state, _ = checkpoints.restore_latest(abstract(make_state()))
    assert step == 1 and same(state, make_state(1))
    (warning,) = caplog.records
    assert warning.levelname == "WARNING" and file.name in warning.getMessage()
    assert "checkpoints/2/params is damaged" in warning.getMessage()
    assert checkpoints.steps() == (1,) and (tmp_path / "damaged" / "2").exists()
    save(checkpoints, 2)  # the run gets there again
    assert checkpoints.restore_latest(abstract(make_state()))[0] == 2
    checkpoints.close()


def test_damage_to_any_file_of_an_item_is_found(opened):
    save(opened, 1)
    folder = folder_of(opened, 1)
    good = folder.parent / "good"
    shutil.copytree(folder, good)
    files = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.parent != folder]
    assert len(files) > 20
    for name in files:
        damage(folder / name, "truncated")
        with pytest.raises(DamagedError, match="is damaged") as error:
            opened.restore(1, abstract(make_state()))
        assert name.name in str(error.value) and "\n" not in str(error.value)
        shutil.copyfile(good / name, folder / name)
    assert same(opened.restore(1, abstract(make_state()))[0], make_state(1))


def test_truncation_is_found_without_fingerprints_too(opened):
    save(opened, 1, 2)
    (folder_of(opened, 2) / "files.json").unlink()
    damage(largest_file(folder_of(opened, 2) / "params"), "truncated")
    assert opened.restore_latest(abstract(make_state()))[0] == 1


def test_only_damaged_checkpoints_stop_the_run_and_stay(opened):
    save(opened, 1, 2)
    for step in (1, 2):
        damage(largest_file(folder_of(opened, step) / "ema_1"), "truncated")
    with pytest.raises(ValueError, match=r"2/ema_1 is damaged.*no checkpoint before it") as error:
        opened.restore_latest(abstract(make_state()))
    assert "\n" not in str(error.value) and opened.steps() == (1, 2)


def test_other_arrays_are_refused_and_not_taken_for_damage(opened):
    save(opened, 1)
    state = make_state()
    cases = {
        r"ema_0/conv/bias = float32\[8\], this run has float32\[9\]": make_state(width=9),
        r"ema_1/conv/bias = float32\[8\], this run has none": state._replace(ema=state.ema[:1]),
        r"rest/step = int32\[\], this run has float32\[\]": state._replace(step=jnp.float32(0)),
        r"opt_state/0/count = none, this": state._replace(opt_state=optax.adam(1.0).init(state.params)),
    }
    for message, other in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            opened.restore_latest(abstract(other))
        assert not isinstance(error.value, DamagedError) and "\n" not in str(error.value)
    assert opened.steps() == (1,)


def test_full_disk_is_noticed_before_it_is_full(opened, monkeypatch):
    save(opened, 1)
    usage = shutil.disk_usage(opened.workdir)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OSError, match=r"No space left on device: .* 1,000 free") as error:
            opened.save(2, make_state(2), {}, {})
    assert str(opened.states.directory) in str(error.value) and "\n" not in str(error.value)
    opened.wait()
    assert opened.restore_latest(abstract(make_state()))[0] == 1
    save(opened, 2)
    assert opened.latest() == 2


def test_disk_that_fills_in_the_middle_fails_the_next_call_and_keeps_the_last_checkpoint(tmp_path, caplog):
    """The kernel refuses to write past a size, while Orbax writes in the background."""
    checkpoints = open_checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    state = make_state(2, width=20_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            checkpoints.save(2, state, {}, {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path / "checkpoints") in str(error.value) and "\n" not in str(error.value)
    assert not caplog.records  # the error is enough
    assert checkpoints.restore_latest(abstract(make_state()))[0] == 1
    checkpoints.save(2, state, {}, {})
    checkpoints.close()
    assert checkpoints.steps() == (2,)
    assert same(checkpoints.restore(2, abstract(state))[0], state)


def test_snapshots_give_averages_of_other_lengths(opened):
    averages = (ema.Decay(0.9), ema.Power(0.05), ema.Power(0.1), ema.Power(0.07))
    history = jnp.asarray(np.random.default_rng(0).normal(size=(60, 4)).cumsum(0), jnp.float32)
    state = ema.init(averages, {"w": history[0]})
    update = jax.jit(functools.partial(ema.update, averages))
    for step in range(1, 61):
        state = update(state, {"w": history[step - 1]}, jnp.int32(step))
        if step % 10 == 0:
            opened.snapshot(step, averages[:3], state[:3])
    opened.wait()
    assert restore.snapshots(opened.workdir)[:3] == ((10, 0.05), (10, 0.1), (20, 0.05))
    same_length, error = read_posthoc(opened.workdir, 60, 0.1)
    assert error < 1e-6
    np.testing.assert_allclose(same_length["w"], state[2]["w"], rtol=1e-5)
    between, error = read_posthoc(opened.workdir, 60, 0.07)
    apart = np.linalg.norm(state[1]["w"] - state[2]["w"])
    assert error < 0.05 and np.linalg.norm(between["w"] - state[3]["w"]) < 0.05 * apart
    with pytest.raises(ValueError, match="no snapshot of step 61, but of 10, 20"):
        read_posthoc(opened.workdir, 61, 0.1)


def test_layout_is_as_documented(opened):
    save(opened, 1)
    opened.snapshot(1, AVERAGES, make_state().ema)
    opened.wait()
    names = {p.name for p in (opened.workdir / "checkpoints" / "1").iterdir() if p.is_dir()}
    assert names == {"params", "ema_0", "ema_1", "rest", "record"}
    assert {p.name for p in (opened.workdir / "ema" / "1").iterdir() if p.is_dir()} == {"sigma_rel_0.05"}
    files = json.loads((opened.workdir / "checkpoints" / "1" / "files.json").read_text())
    assert {name.split("/")[0] for name in files if "/" in name} == names
