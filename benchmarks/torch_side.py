"""PyTorch's side: diffusers' networks, configured alike, with a training step and a DDIM loop that do the same work.

Eager or compiled; the fused AdamW and the multi-tensor average, which are PyTorch's fastest on a CPU. In the comparison
on a GPU (`spec.device`) the U-Net is in channels_last, products of float32 may be TF32, and bfloat16 is autocast.
"""

import copy
import gc
import itertools
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sizes import BETAS, CHANNELS, CLIP, DECAY, DROPOUT, RATE, SIDE, TIMES, Device, Size, Spec, spec_of
from benchmarks.worker import Case, repeat, serve


def network_of(spec: Spec) -> torch.nn.Module:
    """UNet2DModel with DDPM's CIFAR-10 configuration, or DiTTransformer2DModel as the DiT of the given size."""
    size = Size(*spec.size)
    if spec.network == "unet":
        down, up = ["DownBlock2D"] * 4, ["UpBlock2D"] * 4
        down[1], up[2] = "AttnDownBlock2D", "AttnUpBlock2D"
        return UNet2DModel(
            sample_size=SIDE,
            block_out_channels=(size.channels, *(2 * size.channels,) * 3),
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=2,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            attention_head_dim=None,
            dropout=DROPOUT["unet"],
        )
    return DiTTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        in_channels=CHANNELS["dit"],
        out_channels=CHANNELS["dit"],
        num_layers=size.depth,
        sample_size=SIDE,
        patch_size=2,
        num_embeds_ada_norm=1,
    )


def call_of(spec: Spec, network: Callable) -> Callable:
    """(x, t) -> the network's output; a DiT is told a class as well."""
    labels = torch.zeros(spec.batch, dtype=torch.int64, device=spec.device or "cpu")

    def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if spec.network == "unet":
            return network(x, t).sample
        return network(x, timestep=t, class_labels=labels).sample

    def lowered(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if spec.network == "unet":
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(spec.device, torch.bfloat16, enabled=spec.precision == "bfloat16"):
            out = call(x, t)
        return out.float()

    return lowered if spec.device else call


def repeated_parameters(network: torch.nn.Module) -> int:
    """Those of the noise embeddings in all blocks but the first: diffusers' DiT computes one in every block."""
    blocks = list(getattr(network, "transformer_blocks", []))[1:]
    return sum(p.numel() for block in blocks for p in block.norm1.emb.parameters())


def make(fields: dict) -> Case:
    """The case of a spec."""
    spec = spec_of(fields)
    if spec.device != "cuda":
        torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    network = network_of(spec)
    if spec.device:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        network = network.to(torch.device(spec.device))
        network = network.to(memory_format=torch.channels_last) if spec.network == "unet" else network  # pyright: ignore
    compiled = torch.compile(network) if spec.compiled else network
    make_run = training if spec.task == "train" else sampling
    run = make_run(spec, network, call_of(spec, compiled))
    # Counted on a copy that is not compiled, with attention as the plain products, which the counter knows.
    other = copy.deepcopy(network)
    part = spec._replace(batch=2) if spec.device else spec  # whose maps of attention fit; all work grows with the batch
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        make_run(part, other, call_of(part, other))()
    flops = float(counter.get_total_flops()) * spec.batch / part.batch
    about = {
        "version": f"torch {torch.__version__}, diffusers {version('diffusers')}",
        "devices": torch.get_num_threads(),
        "repeated": repeated_parameters(network),
    }
    parameters = sum(p.numel() for p in network.parameters())
    if not spec.device:
        return Case(run, flops, parameters, about)
    layout = "channels_last, " if spec.network == "unet" else ""
    about["settings"] = f"{layout}{'autocast to bfloat16' if spec.precision == 'bfloat16' else 'TF32'}, cudnn.benchmark"

    def finished() -> None:
        run()
        synchronize(spec.device)

    def ready() -> None:
        for _ in range(2):
            finished()
        gc.collect()
        torch.cuda.empty_cache()

    return Case(finished, flops, parameters, about, ready)


def synchronize(device: Device) -> None:
    """Waits until the GPU has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def schedule(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma of the chain's steps."""
    alpha_bar = torch.cumprod(1 - torch.linspace(*BETAS, TIMES, dtype=torch.float64), 0)
    return alpha_bar.sqrt().float().to(device), (1 - alpha_bar).sqrt().float().to(device)


def training(spec: Spec, network: torch.nn.Module, call: Callable) -> Callable[[], object]:
    """The loss on noised images, its gradient, clipping, AdamW, average."""
    network.train()
    params = list(network.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, fused=True)
    device = spec.device or "cpu"
    alpha, sigma = schedule(device)
    image = torch.randint(0, 256, (spec.batch, CHANNELS[spec.network], SIDE, SIDE), dtype=torch.uint8, device=device)

    def run() -> None:
        x0 = image.float() / 127.5 - 1
        t = torch.randint(0, TIMES, (spec.batch,), device=device)
        eps = torch.randn_like(x0)
        x = alpha[t, None, None, None] * x0 + sigma[t, None, None, None] * eps
        loss = torch.nn.functional.mse_loss(call(x, t), eps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if CLIP[spec.network]:
            torch.nn.utils.clip_grad_norm_(params, CLIP[spec.network])
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - DECAY)  # pyright: ignore
        loss.item()

    return run


def sampling(spec: Spec, network: torch.nn.Module, call: Callable) -> Callable[[], object]:
    """DDIM with clipped x0, evenly spaced times."""
    network.eval()
    device = spec.device or "cpu"
    alpha, sigma = schedule(device)
    steps = torch.linspace(TIMES, 0, spec.calls + 1).round().int().tolist()

    @torch.inference_mode()
    def run() -> torch.Tensor:
        x = torch.randn(spec.batch, CHANNELS[spec.network], SIDE, SIDE, device=device)
        for cur, nxt in itertools.pairwise(steps):
            t = torch.full((spec.batch,), cur - 1, device=device)
            x0 = ((x - sigma[cur - 1] * call(x, t)) / alpha[cur - 1]).clamp(-1, 1)
            eps = (x - alpha[cur - 1] * x0) / sigma[cur - 1]
            x = alpha[nxt - 1] * x0 + sigma[nxt - 1] * eps if nxt else x0
        return (127.5 * (x + 1)).round().clamp(0, 255).to(torch.uint8)

    return run


def peaks(seconds: float, quick: bool = False) -> dict[str, float]:
    """Operations per second of float32 matrix products and 3 x 3 convolutions, as on jaxdiff's side."""
    torch.set_num_threads(os.cpu_count() or 1)
    n = 256 if quick else 2048
    a = torch.ones(n, n)
    best = {"matmul": 2.0 * n**3 / fastest(lambda: a @ a, seconds), "conv": 0.0}
    for side, channels in ((32, 128), (16, 256)):
        x, w = torch.ones(1 if quick else 16, channels, side, side), torch.ones(channels, channels, 3, 3)
        time = fastest(lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1), seconds)
        best["conv"] = max(best["conv"], 2.0 * 9 * x.numel() * channels / time)
    return best


def gpu_peaks(seconds: float, device: Device, quick: bool) -> dict[str, dict[str, float]]:
    """For each precision, operations per second of a large product and a convolution, as on jaxdiff's side."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    n, batch, runs = (256, 1, 2) if quick else (8192, 128, 20)
    found: dict[str, dict[str, float]] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
        x = torch.randn(batch, 256, 32, 32, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        w = torch.randn(256, 256, 3, 3, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        works: dict[str, tuple[float, Callable[[], object]]] = {
            "matmul": (2.0 * n**3, lambda a=a, b=b: a @ b),
            "conv": (2.0 * 9 * x.numel() * 256, lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=1)),
        }
        found[name] = {}
        for kind, (flops, function) in works.items():

            def run(function: Callable[[], object] = function) -> None:
                for _ in range(runs):
                    function()
                synchronize(device)

            found[name][kind] = runs * flops / fastest(run, seconds)
    return found


@torch.inference_mode()
def fastest(run: Callable[[], Any], seconds: float) -> float:
    """The time of the fastest of many runs."""
    run()
    return min(repeat(run, seconds, 3))


if __name__ == "__main__":
    serve(make, {"peaks": peaks, "gpu_peaks": gpu_peaks})
