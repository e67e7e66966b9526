"""The original files of EDM2 against a small network written here after the paper's equations."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from jaxdiff.core.types import Level  # noqa: E402
from jaxdiff.networks.apply import apply_fn  # noqa: E402
from jaxdiff.networks.edm2 import EDM2  # noqa: E402
from jaxdiff.originals import open_original  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def unit(x, dims):
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


def silu(x):
    return F.silu(x) / 0.596


def mix(a, b, t):
    return torch.lerp(a, b, t) / math.sqrt((1 - t) ** 2 + t**2)


class MPConv(nn.Module):
    def __init__(self, inputs, outputs, *kernel):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, *kernel))

    def forward(self, x, gain=1):
        w = unit(self.weight, tuple(range(1, self.weight.ndim)))
        w = w * (gain / math.sqrt(w[0].numel()))
        return x @ w.T if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


class MPFourier(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(count))
        self.register_buffer("phases", 2 * math.pi * torch.rand(count))

    def forward(self, t):
        return math.sqrt(2) * (t[:, None] * self.freqs + self.phases).cos()


class Block(nn.Module):
    def __init__(self, inputs, outputs, emb, encoder, change=None, heads=0):
        super().__init__()
        self.inputs, self.encoder, self.change, self.heads = inputs, encoder, change, heads
        self.emb_gain = nn.Parameter(torch.tensor(0.7))
        self.conv_res0 = MPConv(outputs if encoder else inputs, outputs, 3, 3)
        self.emb_linear, self.conv_res1 = MPConv(emb, outputs), MPConv(outputs, outputs, 3, 3)
        self.conv_skip = MPConv(inputs, outputs, 1, 1) if inputs != outputs else None
        self.attn_qkv = MPConv(outputs, 3 * outputs, 1, 1) if heads else None
        self.attn_proj = MPConv(outputs, outputs, 1, 1) if heads else None

    def forward(self, x, emb):
        if self.change == "down":
            x = F.avg_pool2d(x, 2)
        if self.change == "up":
            x = F.interpolate(x, scale_factor=2.0)
        main = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = main = unit(main, 1)
        y = self.conv_res0(silu(x)) * (1 + self.emb_linear(emb, self.emb_gain))[:, :, None, None]
        x = mix(main, self.conv_res1(silu(y)), 0.3)
        if self.heads:
            b, c = x.shape[:2]
            qkv = unit(self.attn_qkv(x).reshape(b, self.heads, c // self.heads, 3, -1), 2)
            q, k, v = qkv.unbind(3)
            weights = (q.transpose(-1, -2) @ k / math.sqrt(c // self.heads)).softmax(-1)
            x = mix(x, self.attn_proj((v @ weights.transpose(-1, -2)).reshape(x.shape)), 0.3)
        return x.clip(-256, 256)


class UNet(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self._init_kwargs = dict(given)
        size, classes, base = given["img_resolution"], given["label_dim"], given["model_channels"]
        widths, count = [base * mult for mult in given["channel_mult"]], given["num_blocks"]
        attends = [size >> level in given["attn_resolutions"] for level in range(len(widths))]
        per_head, emb = given["channels_per_head"], max(widths)
        block = functools.partial(Block, emb=emb)
        self.classes, self.out_gain = classes, nn.Parameter(torch.tensor(0.9))
        self.emb_fourier, self.emb_noise = MPFourier(widths[0]), MPConv(widths[0], emb)
        self.emb_label = MPConv(classes, emb) if classes else None
        width, skips = widths[0], [widths[0]]
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": MPConv(given["img_channels"] + 1, width, 3, 3)})
        for level, wide in enumerate(widths):
            side, heads = f"{size >> level}x{size >> level}", wide // per_head * attends[level]
            if level:
                self.enc[f"{side}_down"] = block(width, width, encoder=True, change="down")
                skips.append(width)
            for i in range(count):
                self.enc[f"{side}_block{i}"] = block(width, wide, encoder=True, heads=heads)
                width = wide
                skips.append(width)
        self.dec = nn.ModuleDict()
        for level, wide in reversed(list(enumerate(widths))):
            side, heads = f"{size >> level}x{size >> level}", wide // per_head * attends[level]
            if level == len(widths) - 1:
                self.dec[f"{side}_in0"] = block(width, width, encoder=False, heads=width // per_head)
                self.dec[f"{side}_in1"] = block(width, width, encoder=False)
            else:
                self.dec[f"{side}_up"] = block(width, width, encoder=False, change="up")
            for i in range(count + 1):
                self.dec[f"{side}_block{i}"] = block(width + skips.pop(), wide, encoder=False, heads=heads)
                width = wide
        self.out_conv = MPConv(width, given["img_channels"], 3, 3)

    def forward(self, x, t, label):
        emb = self.emb_noise(self.emb_fourier(t))
        if self.classes:
            emb = mix(emb, self.emb_label(label * math.sqrt(self.classes)), 0.5)
        emb = silu(emb)
        x, skips = torch.cat([x, torch.ones_like(x[:, :1])], 1), []
        for name, part in self.enc.items():
            x = part(x) if name.endswith("conv") else part(x, emb)
            skips.append(x)
        for part in self.dec.values():
            if part.inputs != x.shape[1]:
                other = skips.pop()
                n, m = x.shape[1], other.shape[1]
                x = torch.cat([x / math.sqrt(n), other / math.sqrt(m)], 1) * math.sqrt((n + m) / 2)
            x = part(x, emb)
        return self.out_conv(x, self.out_gain)


class Precond(nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet, self.sigma_data = unet, 0.5
        self.logvar_fourier, self.logvar_linear = MPFourier(8), MPConv(8, 1)

    def forward(self, x, sigma, label):
        s, wide = self.sigma_data, sigma[:, None, None, None]
        out = self.unet(x / (s**2 + wide**2).sqrt(), sigma.log() / 4, label)
        return s**2 / (wide**2 + s**2) * x + wide * s / (wide**2 + s**2).sqrt() * out


GIVEN = dict(
    img_resolution=8, img_channels=4, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4],
    channels_per_head=16,
)  # fmt: skip


@pytest.mark.parametrize("classes", [0, 5])
def test_small_denoisers(classes, tmp_path, save_persistent):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs = Precond(UNet(**GIVEN, label_dim=classes)).eval()
    original = open_original(save_persistent(theirs, tmp_path / "net.pkl", dataset_kwargs={}))
    assert isinstance(original.network, EDM2) and (original.size, original.channels) == (8, 4)

    rng = np.random.default_rng(1)
    x, sigma = rng.standard_normal((3, 8, 8, 4), np.float32), np.array([0.1, 1.5, 7.0], np.float32)
    label = torch.zeros(3, classes)
    if classes:
        label[0, 3] = label[1, 0] = 1.0
    cond = {"label": jnp.array([3, 0, -1])} if classes else {}
    with torch.no_grad():
        args = (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(sigma), label)
        expected = theirs(*args).numpy().transpose(0, 2, 3, 1)
    level = original.path(jnp.asarray(sigma))
    out = quickly(apply_fn(original.network, original.prediction))(original.params, x, level, level, cond)
    a, b = (np.asarray(v)[:, None, None, None] for v in original.prediction.row(Level(*level)))
    wide = sigma[:, None, None, None]
    x0 = (b * x - wide * out) / (b - wide * a)
    assert np.abs(x0 - expected).max() / np.abs(expected).max() < 1e-4


def test_a_missing_tensor_is_named(tmp_path, save_persistent):
    net = Precond(UNet(**GIVEN, label_dim=0))
    del net.unet.dec["4x4_in0"].attn_proj.weight
    with pytest.raises(ValueError, match=r"dec\.4x4_in0\.attn_proj\.weight is missing"):
        open_original(save_persistent(net, tmp_path / "net.pkl"))
