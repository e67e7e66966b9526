"""EDM's networks in PyTorch, written after the paper (arXiv:2206.00364) with the names of its files."""

import functools
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Linear(nn.Module):
    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """A filter that halves or doubles the size, then a convolution if it has a kernel."""

    def __init__(self, inputs, outputs, kernel, change=None, taps=(1, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(outputs)) if kernel else None
        line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
        self.register_buffer("resample_filter", torch.outer(line, line)[None, None] if change else None)
        self.change = change

    def forward(self, x):
        if self.change:
            f, c = self.resample_filter, x.shape[1]
            pad = f.shape[-1] // 2 - 1
            f = f.repeat(c, 1, 1, 1)
            if self.change == "up":
                x = F.conv_transpose2d(x, 4 * f, stride=2, padding=pad, groups=c)
            else:
                x = F.conv2d(x, f, stride=2, padding=pad, groups=c)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


class FusedDown(Conv2d):
    """The convolution at full density, then the filter; the image is wider by what the filter reaches."""

    def forward(self, x):
        f = self.resample_filter.repeat(self.weight.shape[0], 1, 1, 1)
        h = F.conv2d(x, self.weight, padding=1 + f.shape[-1] // 2 - 1)
        return F.conv2d(h, f, stride=2, groups=len(f)) + self.bias[None, :, None, None]


class GroupNorm(nn.Module):
    def __init__(self, channels, eps):
        super().__init__()
        self.eps, self.groups = eps, min(32, channels // 4)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class UNetBlock(nn.Module):
    def __init__(self, inputs, outputs, emb, song, change=None, attention=False, taps=(1, 1), heads=1):
        super().__init__()
        eps = 1e-6 if song else 1e-5
        self.norm0, self.norm1 = GroupNorm(inputs, eps), GroupNorm(outputs, eps)
        self.conv0 = Conv2d(inputs, outputs, 3, change, taps)
        self.affine = Linear(emb, outputs * (1 if song else 2))
        self.conv1 = Conv2d(outputs, outputs, 3)
        self.skip = None
        if inputs != outputs or change:
            self.skip = Conv2d(inputs, outputs, 1 if song or inputs != outputs else 0, change, taps)
        self.factor, self.song, self.heads, self.inputs = np.sqrt(0.5) if song else 1.0, song, heads, inputs
        if attention:
            self.norm2 = GroupNorm(outputs, eps)
            self.qkv, self.proj = Conv2d(outputs, 3 * outputs, 1), Conv2d(outputs, outputs, 1)

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(emb)[:, :, None, None]
        if self.song:
            h = F.silu(self.norm1(h + modulation))
        else:
            scale, shift = modulation.chunk(2, 1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        x = (self.conv1(h) + (self.skip(x) if self.skip is not None else x)) * self.factor
        if hasattr(self, "qkv"):
            b, c = x.shape[:2]
            q, k, v = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, -1).unbind(3)
            weights = (q.transpose(-1, -2) @ k / math.sqrt(c // self.heads)).softmax(-1)
            x = (self.proj((v @ weights.transpose(-1, -2)).reshape(x.shape)) + x) * self.factor
        return x


def waves(t, count, endpoint):
    half = count // 2
    angle = t[:, None] * 10000.0 ** (-torch.arange(half) / (half - endpoint))
    return angle.cos(), angle.sin()


class Waves(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(count // 2, generator=torch.Generator().manual_seed(3)))


class Base(nn.Module):
    """Both networks; the subclasses give their names to the file."""

    def __init__(self, song, **given):
        super().__init__()
        self._init_kwargs = dict(given)
        size, base, mults = given["img_resolution"], given["model_channels"], given["channel_mult"]
        count, self.song, self.classes = given["num_blocks"], song, given["label_dim"]
        taps = given.get("resample_filter", [1, 1])
        fourier, emb = given.get("embedding_type") == "fourier", base * given["channel_mult_emb"]
        self.noise = base * given.get("channel_mult_noise", 1)
        self.map_noise = Waves(self.noise) if fourier else None
        self.map_layer0, self.map_layer1 = Linear(self.noise, emb), Linear(emb, emb)
        if self.classes:
            self.map_label = Linear(self.classes, self.noise if song else emb, bias=song)
        if given["augment_dim"]:
            self.map_augment = Linear(given["augment_dim"], self.noise, bias=False)
        block = functools.partial(UNetBlock, emb=emb, song=song, taps=taps)
        attends = [size >> level in given["attn_resolutions"] for level in range(len(mults))]
        heads = [1 if song else base * mult // 64 for mult in mults]
        width, aux, skips = base if song else base * mults[0], 3, []
        self.enc = nn.ModuleDict({f"{size}x{size}_conv": Conv2d(3, width, 3)})
        skips.append(width)
        for level, mult in enumerate(mults):
            side = f"{size >> level}x{size >> level}"
            if level:
                self.enc[f"{side}_down"] = block(width, width, change="down")
                skips.append(width)
                if given.get("encoder_type") == "residual":
                    self.enc[f"{side}_aux_residual"] = FusedDown(aux, width, 3, "down", taps)
                    aux = width
            for i in range(count):
                self.enc[f"{side}_block{i}"] = block(width, base * mult, attention=attends[level], heads=heads[level])
                width = base * mult
                skips.append(width)
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(mults))):
            side = f"{size >> level}x{size >> level}"
            if level == len(mults) - 1:
                self.dec[f"{side}_in0"] = block(width, width, attention=True, heads=heads[level])
                self.dec[f"{side}_in1"] = block(width, width)
            else:
                self.dec[f"{side}_up"] = block(width, width, change="up")
            for i in range(count + 1):
                here = attends[level] and (not song or i == count)
                inputs, width = width + skips.pop(), base * mult
                self.dec[f"{side}_block{i}"] = block(inputs, width, attention=here, heads=heads[level])
        norm, conv = GroupNorm(width, 1e-6 if song else 1e-5), Conv2d(width, 3, 3)
        if song:
            self.dec[f"{size}x{size}_aux_norm"], self.dec[f"{size}x{size}_aux_conv"] = norm, conv
        else:
            self.out_norm, self.out_conv = norm, conv

    def forward(self, x, t, label, augment):
        if self.map_noise is not None:
            angle = 2 * math.pi * t[:, None] * self.map_noise.freqs
            emb = torch.cat([angle.sin(), angle.cos()], 1)
        else:
            cos, sin = waves(t, self.noise, self.song)
            emb = torch.cat([sin, cos] if self.song else [cos, sin], 1)
        if self.classes and self.song:
            emb = emb + self.map_label(label * math.sqrt(self.classes))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        emb = F.silu(emb + self.map_label(label) if self.classes and not self.song else emb)
        aux, skips = x, []
        for name, part in self.enc.items():
            if name.endswith("_residual"):
                x = skips[-1] = aux = (x + part(aux)) / math.sqrt(2)
            else:
                x = part(x) if name.endswith("conv") else part(x, emb)
                skips.append(x)
        for name, part in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(part(x))
            elif name.endswith("aux_conv"):
                return part(x)
            else:
                x = torch.cat([x, skips.pop()], 1) if part.inputs != x.shape[1] else x
                x = part(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(Base):
    def __init__(self, **given):
        super().__init__(True, **given)


class DhariwalUNet(Base):
    def __init__(self, **given):
        super().__init__(False, **given)


class Outer(nn.Module):
    def __init__(self, model, **fields):
        super().__init__()
        self.model, self.factor = model, np.float32(2)  # a number of NumPy's lies in it, as in the published files
        for name, value in fields.items():
            setattr(self, name, value)


class EDMPrecond(Outer):
    def forward(self, x, sigma, label, augment):
        s = self.sigma_data
        out = self.model(x / (s**2 + sigma**2).sqrt(), sigma.flatten().log() / 4, label, augment)
        return s**2 / (sigma**2 + s**2) * x + sigma * s / (sigma**2 + s**2).sqrt() * out


class VPPrecond(Outer):
    def forward(self, x, sigma, label, augment):
        b, d = self.beta_min, self.beta_d
        t = ((b**2 + 2 * d * (1 + sigma**2).log()).sqrt() - b) / d
        return x - sigma * self.model(x / (1 + sigma**2).sqrt(), (self.M - 1) * t.flatten(), label, augment)


class VEPrecond(Outer):
    def forward(self, x, sigma, label, augment):
        return x + sigma * self.model(x, (sigma / 2).log().flatten(), label, augment)
