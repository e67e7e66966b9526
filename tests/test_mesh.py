"""Whatever the mesh, and with `jit` as with `pmap`: the same losses, the same parameters; parts where they belong."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
import pytest

from jaxdiff import build
from jaxdiff.config import Config
from jaxdiff.networks.dit import DiT
from jaxdiff.networks.unet import UNet
from jaxdiff.presets import preset
from jaxdiff.training.checkpoint import open_checkpoints
from jaxdiff.training.engine import DEVICES, Engine, jit_engine, pmap_engine
from jaxdiff.training.optim import SGD, Constant, Optim
from jaxdiff.training.sharding import MeshShape, make_mesh
from jaxdiff.training.state import TrainState

NETWORKS = {
    "dit": DiT(patch=2, width=64, depth=2, heads=4, num_classes=10),
    "unet": UNet(
        patch=2,
        channels=32,
        channel_mults=(1,),
        blocks_per_level=1,
        attention_resolutions=(),
        middle_attention=False,
        scale_shift=True,
        num_classes=10,
    ),
}
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8),
    "label": np.arange(16, dtype=np.int32) % 10,
}


class Run(NamedTuple):
    losses: list[float]
    state: TrainState


def config_of(network: str) -> Config:
    config = preset("emoji")  # stratified times, dropped labels: all that could depend on how a batch is cut
    # Plain gradient descent at a rate that moves the losses; Adam would blow rounding up where gradients vanish.
    optim = Optim(0.5, SGD(), warmup=0, decay=Constant())
    return dataclasses.replace(
        config, network=NETWORKS[network], optim=optim, data=dataclasses.replace(config.data, size=8)
    )


def begin(config: Config, devices: int, shape: MeshShape, engine: str = "jit", accumulate: int = 1):
    """(engine, abstract state with its places, first state)."""
    mesh = make_mesh(shape, jax.devices()[:devices])
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulate=accumulate), batch_size=16)
    init, abstract = build.state_fn(config, mesh)
    if engine == "pmap":
        run = pmap_engine(mesh, build.step_fn(config, DEVICES))
    else:
        run = jit_engine(mesh, build.step_fn(config), abstract, config.batch_size)
    return run, abstract, jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))


def go(engine: Engine, state: TrainState, steps: int = 3) -> Run:
    losses, state = [], engine.spread(state)
    for _ in range(steps):
        state, metrics = engine.step(state, BATCH)
        losses.append(float(metrics["loss"]))
    return Run(losses, engine.whole(state))


@pytest.fixture(scope="module")
def alone() -> dict[str, Run]:
    """One device, the whole batch at once."""
    runs = {}
    for name in NETWORKS:
        engine, _, init = begin(config_of(name), 1, MeshShape())
        runs[name] = go(engine, init())
        assert np.ptp(runs[name].losses) > 1e-3
    return runs


MESHES = {
    "2 devices": (2, MeshShape()),
    "fsdp 4": (4, MeshShape(fsdp=4)),
    "data 2, fsdp 2, tensor 2": (8, MeshShape(fsdp=2, tensor=2)),
    "data 2, sequence 2, tensor 2": (8, MeshShape(sequence=2, tensor=2)),
}


def assert_same(run: Run, want: Run) -> None:
    np.testing.assert_allclose(run.losses, want.losses, rtol=2e-5)
    for got, leaf in zip(jax.tree.leaves(run.state), jax.tree.leaves(want.state), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(leaf), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_transformer_learns_the_same_on_every_mesh(alone, mesh):
    devices, shape = MESHES[mesh]
    engine, _, init = begin(config_of("dit"), devices, shape)
    assert_same(go(engine, init()), alone["dit"])


def test_a_unet_learns_the_same_on_a_mesh(alone):
    engine, _, init = begin(config_of("unet"), 8, MeshShape(fsdp=2, tensor=2))
    assert_same(go(engine, init()), alone["unet"])


@pytest.mark.parametrize(("engine", "devices", "parts"), [("pmap", 8, 1), ("pmap", 4, 2), ("jit", 2, 4)])
def test_pmap_and_accumulation_are_the_same_step(alone, engine, devices, parts):
    run, _, init = begin(config_of("dit"), devices, MeshShape(), engine, parts)
    assert_same(go(run, init()), alone["dit"])


def test_a_state_is_kept_in_parts(alone):
    _, _, init = begin(config_of("dit"), 8, MeshShape(fsdp=2, tensor=2))
    state = init()
    kernel = state.params["network"]["blocks"]["mlp_0"]["kernel"]
    assert kernel.shape == (2, 64, 256) and kernel.addressable_shards[0].data.shape == (2, 32, 128)
    heads = state.params["network"]["blocks"]["qkv"]["kernel"]
    assert heads.shape == (2, 64, 3, 4, 16) and heads.addressable_shards[0].data.shape == (2, 32, 3, 2, 16)
    for tree in (state.ema[0], state.opt_state):  # averages and moments lie where their parameters lie
        same = [leaf for leaf in jax.tree.leaves(tree) if leaf.shape == kernel.shape]
        assert all(leaf.sharding == kernel.sharding for leaf in same)
        assert same or tree is state.opt_state  # plain gradient descent has no moments
    sizes = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(state.params)]
    whole = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    here = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(state.params))
    assert min(sizes) == 0.25 and here < 0.4 * whole


def test_a_checkpoint_of_one_mesh_goes_on_on_another(alone, tmp_path):
    config = config_of("dit")
    engine, _, init = begin(config, 8, MeshShape(fsdp=2, tensor=2))
    half = go(engine, init(), steps=1)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, half.state, {}, {})
    checkpoints.wait()
    for devices, shape in ((1, MeshShape()), (4, MeshShape(fsdp=4))):  # compiled above
        other, abstract, _ = begin(config, devices, shape)
        state, _ = checkpoints.restore(1, abstract)
        for got, saved in zip(jax.tree.leaves(state), jax.tree.leaves(half.state), strict=True):
            assert np.asarray(got).tobytes() == np.asarray(saved).tobytes()
        rest = go(other, state, steps=2)
        assert_same(rest._replace(losses=half.losses + rest.losses), alone["dit"])
    checkpoints.close()


@pytest.mark.parametrize(
    ("shape", "devices", "words"),
    [
        (MeshShape(fsdp=3), 8, ["data x 3 x 1 x 1", "8 device(s)", "--mesh.data"]),
        (MeshShape(data=2), 8, ["2 x 1 x 1 x 1", "8 device(s)"]),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(shape, devices, words):
    with pytest.raises(ValueError) as info:
        make_mesh(shape, jax.devices()[:devices])
    assert all(word in str(info.value) for word in words) and "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"mesh\.tensor = 0 .*--mesh\.tensor"):
        MeshShape(tensor=0)


def test_a_batch_that_the_mesh_cannot_share_is_refused():
    config = dataclasses.replace(config_of("dit"), batch_size=12, mesh=MeshShape(fsdp=4, tensor=2))
    build.check_devices(config, 8)
    with pytest.raises(ValueError, match=r"multiple of 8 .*--batch-size"):
        build.check_devices(config, 16)
    with pytest.raises(ValueError, match="--engine"):
        build.check_devices(dataclasses.replace(config, engine="pmap"), 8)
