"""The original files of DiT and SiT against a small network written here after the papers, by the same names."""

import argparse
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from jaxdiff.core.predictions import Eps, Flow  # noqa: E402
from jaxdiff.networks.dit import sincos_positions  # noqa: E402
from jaxdiff.originals import open_original  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
WIDTH, HEADS, PATCH, SIDE = 384, 6, 4, 8  # the smallest published width


def normed(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, emb):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(emb).chunk(6, 1)
        b, n, _ = x.shape
        qkv = self.attn["qkv"](normed(x, shift_1, scale_1)).reshape(b, n, 3, HEADS, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1)
        x = x + gate_1[:, None] * self.attn["proj"](h)
        h = F.gelu(self.mlp["fc1"](normed(x, shift_2, scale_2)), approximate="tanh")
        return x + gate_2[:, None] * self.mlp["fc2"](h)


class Final(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(WIDTH, PATCH**2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))


class Net(nn.Module):
    """Twice the channels, of which SiT drops the second half."""

    def __init__(self, drops):
        super().__init__()
        self.drops = drops
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(4, WIDTH, PATCH, stride=PATCH)})
        mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(6, WIDTH)})
        grid = sincos_positions(SIDE // PATCH, SIDE // PATCH, WIDTH)
        self.pos_embed = nn.Parameter(torch.from_numpy(grid)[None], requires_grad=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.final_layer = Final(8)

    def forward(self, x, t, label):
        angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        emb = self.t_embedder["mlp"](torch.cat([angle.cos(), angle.sin()], -1))
        emb = emb + self.y_embedder["embedding_table"](label)
        h = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.final_layer.adaLN_modulation(emb).chunk(2, 1)
        h = self.final_layer.linear(normed(h, shift, scale))
        side = SIDE // PATCH
        h = h.reshape(len(x), side, side, PATCH, PATCH, 8).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, SIDE, SIDE)
        return h.chunk(2, 1)[0] if self.drops else h


def network(drops=False):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    net = Net(drops).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def outputs(net, original, t):
    rng = np.random.default_rng(1)
    x, label = rng.standard_normal((2, SIDE, SIDE, 4), np.float32), np.array([3, 5], np.int32)
    with torch.no_grad():
        args = (torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), torch.from_numpy(label))
        theirs = net(*args).numpy().transpose(0, 2, 3, 1)
    cond = {"label": jnp.array([3, -1])}  # the last row is the absent label
    return quickly(original.network.apply)({"params": original.params}, jnp.asarray(x), jnp.asarray(t), cond), theirs


@pytest.mark.parametrize("training", [False, True])
def test_dit(tmp_path, training):
    net = network()
    state = net.state_dict()
    if training:  # the average is what counts, and the flags and moments beside it do not matter
        other = {name: value + 1 for name, value in state.items()}
        moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
        state = {"model": other, "ema": state, "opt": moments, "args": argparse.Namespace(lr=1e-4, model="DiT-S/4")}
    torch.save(state, tmp_path / "dit.pt")
    original = open_original(tmp_path / "dit.pt")
    assert (original.size, original.channels, original.network.num_classes) == (SIDE, 4, 5)
    assert original.network.learned_variance and isinstance(original.prediction, Eps)
    ours, theirs = outputs(net, original, np.array([3.0, 700.0], np.float32))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_sit_predicts_the_other_way(tmp_path):
    net = network(drops=True)
    torch.save(net.state_dict(), tmp_path / "sit.pt")
    original = open_original(tmp_path / "sit.pt", sit=True)
    assert not original.network.learned_variance and isinstance(original.prediction, Flow)
    t = jnp.array([0.25, 0.75])  # ours, whose 0 is clean
    fed = original.prediction.c_noise(original.path(t))
    np.testing.assert_allclose(fed, 1 - t, atol=1e-6)
    ours, theirs = outputs(net, original, np.asarray(fed))
    # Theirs is the velocity from noise to data.
    assert np.abs(ours + theirs).max() < 1e-4 * np.abs(theirs).max()


def test_other_positions_are_refused(tmp_path):
    state = network().state_dict()
    state["pos_embed"] = state["pos_embed"].flip(1)
    torch.save(state, tmp_path / "dit.pt")
    with pytest.raises(ValueError, match="pos_embed of shape"):
        open_original(tmp_path / "dit.pt")


def test_unknown_widths_are_refused(tmp_path):
    state = network().state_dict()
    state["x_embedder.proj.weight"] = state["x_embedder.proj.weight"][:100]
    torch.save(state, tmp_path / "dit.pt")
    with pytest.raises(ValueError, match="allowed are the widths 384, 768, 1024, 1152"):
        open_original(tmp_path / "dit.pt")
