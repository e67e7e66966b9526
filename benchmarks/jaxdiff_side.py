"""jaxdiff's side: the step of train.py and the scan of sample.py, on the devices that they use."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.flops import count_flops
from benchmarks.sizes import BETAS, CHANNELS, CLIP, DECAY, DROPOUT, RATE, SIDE, TIMES, Device, Size, Spec, spec_of
from benchmarks.worker import Case, repeat, serve
from jaxdiff import build
from jaxdiff.config import Config, Sampling
from jaxdiff.core import betas, grids, paths, predictions, times
from jaxdiff.core.predictions import PathTime
from jaxdiff.data import Data
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.axes import parameter_axes
from jaxdiff.networks.dit import DiT
from jaxdiff.objectives.denoising import Denoising
from jaxdiff.presets import preset
from jaxdiff.sampler import Guides, Weights, denoise_of, levels_of, scales_of, to_uint8
from jaxdiff.sampling.ddim import DDIM
from jaxdiff.sampling.sample import image_keys, initial, sample
from jaxdiff.training.cpu import use_cpu
from jaxdiff.training.ema import Decay
from jaxdiff.training.engine import jit_engine, jit_step
from jaxdiff.training.optim import AdamW, Optim, optimizer
from jaxdiff.training.sharding import make_mesh, partition, replicated, shard_batch
from jaxdiff.training.state import Purpose, TrainState, key_for
from jaxdiff.training.step import init_state, make_step


def config_of(spec: Spec) -> Config:
    """The preset cifar10_ddpm, or the DiT of `spec.size` on the same chain, sampled by DDIM."""
    size = Size(*spec.size)
    if spec.network == "unet":
        config = preset("cifar10_ddpm")
        network = config.network.clone(channels=size.channels, dropout=DROPOUT["unet"], dtype=spec.precision)
        config = dataclasses.replace(config, network=network)
    else:
        chain = paths.DiscreteVP(TIMES, betas.LinearBetas(*BETAS))
        config = Config(
            data=Data("records:latents", size=SIDE, channels=CHANNELS["dit"], labels=False),
            network=DiT(patch=2, width=size.width, depth=size.depth, heads=size.heads, dtype=spec.precision),
            objective=Denoising(
                path=chain, prediction=predictions.Eps(PathTime(chain, offset=-1.0)), times=times.UniformSteps(TIMES)
            ),
            optim=Optim(learning_rate=RATE, rule=AdamW(), clip=CLIP["dit"]),
            ema=(Decay(DECAY),),
            grid=grids.Trailing(TIMES),
        )
    sampling = Sampling(steps=spec.calls)
    return dataclasses.replace(config, batch_size=spec.batch, solver=DDIM(), sampling=sampling)


def image_shape(spec: Spec) -> tuple[int, int, int]:
    """Height, width and channels."""
    return spec.side, spec.side, CHANNELS[spec.network]


def make(fields: dict) -> Case:
    """The case of a spec, in a process that has not used its devices yet."""
    spec = spec_of(fields)
    if spec.device != "cuda":
        use_cpu(spec.batch)
    if spec.task == "sample":
        return sampling_case(spec)
    return training(config_of(spec), image_shape(spec), compiled=bool(spec.device))


def training(config: Config, shape: tuple[int, int, int], compiled: bool = False) -> Case:
    """The step of train.py: loss, gradient, clipping, Adam, average; the state is donated.

    `compiled`: before it runs, and on a batch that is on the device already, as PyTorch's is.
    """
    mesh = make_mesh(config.mesh)
    init, step = init_and_step(config, shape)
    abstract = jax.eval_shape(init)
    places = partition(abstract, mesh, parameter_axes)
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    state = jax.jit(init, out_shardings=places, compiler_options=options)()
    placed = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), abstract, places)
    engine = jit_engine(mesh, step, placed, config.batch_size)
    image = np.random.default_rng(0).integers(0, 256, (config.batch_size, *shape), np.uint8)
    holder = [engine.spread(state)]

    def run() -> None:
        holder[0], metrics = engine.step(holder[0], {"image": image})
        jax.block_until_ready((holder[0], metrics))

    plain = counted(dataclasses.replace(config, network=config.network.clone(remat="none")))  # nothing computed twice
    flops = work_of(*step_and_args(plain, shape))
    if not compiled:
        return Case(run, flops, count(abstract.params), about())
    with jax.set_mesh(mesh):
        batch = shard_batch(mesh, {"image": image})
        program = jit_step(mesh, step, placed).lower(holder[0], batch).compile()

    def run_compiled() -> None:
        with jax.set_mesh(mesh):
            holder[0], metrics = program(holder[0], batch)
        jax.block_until_ready((holder[0], metrics))

    return Case(run_compiled, flops, count(abstract.params), about(), ready=lambda: None)


def init_and_step(config: Config, shape: tuple[int, int, int]) -> tuple[Callable[[], TrainState], Callable[..., Any]]:
    """The first state, and the step from one to the next."""
    rule = optimizer(config.optim, config.steps)

    def init() -> TrainState:
        params = {"network": init_params(config.network, key_for(config.seed, 0, Purpose.INIT), shape, {})}
        return init_state(params, rule, config.ema)

    return init, make_step(build.loss_fn(config), rule, config.ema, config.seed)


def step_and_args(config: Config, shape: tuple[int, int, int]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The step, and its arguments without values."""
    init, step = init_and_step(config, shape)
    batch = {"image": jax.ShapeDtypeStruct((config.batch_size, *shape), np.uint8)}
    return step, (jax.eval_shape(init), batch)


def counted(config: Config) -> Config:
    """The same network with attention as plain products, whose operations can be counted."""
    return dataclasses.replace(config, network=config.network.clone(attention="plain"))


def sampling_case(spec: Spec) -> Case:
    """The sampler of sample.py, for images of any number of channels: one network call in each step of the scan."""
    config, shape = config_of(spec), image_shape(spec)
    mesh = make_mesh(config.mesh)
    program, args = sampler_and_args(config, shape)
    abstract, indices, levels = args
    work = work_of(*sampler_and_args(counted(config), shape))
    key = jax.random.key(0)
    params = jax.jit(lambda: {"network": init_params(config.network, key, shape, {})})()
    args = (
        jax.device_put(params, partition(params, mesh, parameter_axes)),
        shard_batch(mesh, {"index": indices})["index"],
        jax.device_put(levels, replicated(mesh)),
    )
    if spec.device:
        with jax.set_mesh(mesh):
            program = program.lower(*args).compile()

    def run() -> None:
        with jax.set_mesh(mesh):
            program(*args).block_until_ready()

    return Case(run, work, count(abstract), about(), ready=(lambda: None) if spec.device else None)


def sampler_and_args(config: Config, shape: tuple[int, int, int]) -> tuple[Any, tuple[Any, ...]]:
    """The jitted sampler, and its arguments: parameters without values, the images' numbers, the levels."""

    @jax.jit
    def sampler(params: Any, indices: jax.Array, levels: Any) -> jax.Array:
        keys = image_keys(0, indices)
        denoise = denoise_of(config, Guides(), Weights(params), {}, scales_of(config))
        x = initial(keys, shape, jax.tree.map(lambda a: a[0], levels))
        return to_uint8(sample(keys, x, levels, denoise, config.solver))

    params = jax.eval_shape(lambda: {"network": init_params(config.network, jax.random.key(0), shape, {})})
    indices = np.arange(config.batch_size, dtype=np.int32)
    return sampler, (params, indices, levels_of(config, config.objective.path_of({})))


def work_of(function: Callable, args: tuple[Any, ...]) -> float:
    """The operations of the network as it is defined: of upsampling, then a 3x3 convolution of the large image.

    jaxdiff computes the same numbers with fewer (and DiT's attention map twice, to save memory): every side's rate is
    in operations of the definition.
    """

    def as_defined(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return jax.lax.conv_general_dilated(x.repeat(2, 1).repeat(2, 2), kernel, *args, **kwargs)

    try:
        with mock.patch("jaxdiff.networks.blocks.upsampled_convolution", as_defined):
            return count_flops(function, *args)
    finally:
        jax.clear_caches()  # what was traced here must not be run


def count(params: Any) -> int:
    """How many numbers there are."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def about() -> dict[str, object]:
    """The library's version and devices."""
    return {"version": f"jax {jax.__version__}", "devices": jax.device_count()}


def peaks(seconds: float, quick: bool = False) -> dict[str, float]:
    """Operations per second of float32 matrix products and 3 x 3 convolutions, the best of a few shapes."""
    n = 256 if quick else 2048
    a = jnp.ones((n, n))
    matmul = jax.jit(jnp.matmul)
    best = {"matmul": 2.0 * n**3 / fastest(lambda: matmul(a, a).block_until_ready(), seconds), "conv": 0.0}
    for side, channels in ((32, 128), (16, 256)):
        batch = 1 if quick else 16
        x, w = jnp.ones((batch, side, side, channels)), jnp.ones((3, 3, channels, channels))
        conv = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT))
        time = fastest(lambda conv=conv, x=x, w=w: conv(x, w).block_until_ready(), seconds)
        best["conv"] = max(best["conv"], 2.0 * 9 * x.size * channels / time)
    return best


LAYOUT = ("NHWC", "HWIO", "NHWC")


def gpu_peaks(seconds: float, device: Device, quick: bool) -> dict[str, dict[str, float]]:
    """For each precision, operations per second of a large matrix product and a 3 x 3 convolution; TF32 is float32."""
    n, batch, runs = (256, 1, 2) if quick else (8192, 128, 20)
    found: dict[str, dict[str, float]] = {}
    conv = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT))
    matmul = jax.jit(jnp.matmul)

    def rate(flops: float, function: Callable, *shapes: tuple[int, ...]) -> float:
        args = [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]

        def run() -> None:
            for _ in range(runs - 1):
                function(*args)
            function(*args).block_until_ready()

        return runs * flops / fastest(run, seconds)

    for dtype in ("float32", "bfloat16"):
        shapes = (batch, 32, 32, 256), (3, 3, 256, 256)
        found[dtype] = {
            "matmul": rate(2.0 * n**3, matmul, (n, n), (n, n)),
            "conv": rate(2.0 * 9 * batch * 32 * 32 * 256 * 256, conv, *shapes),
        }
    return found


def fastest(run: Any, seconds: float) -> float:
    """The time of the fastest of many runs: a peak is what the machine can do when nothing disturbs it."""
    run()
    return min(repeat(run, seconds, 3))


if __name__ == "__main__":
    serve(make, {"peaks": peaks, "gpu_peaks": gpu_peaks, "kind": lambda: jax.devices()[0].device_kind})
