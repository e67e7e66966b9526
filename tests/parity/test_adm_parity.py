"""The original files of improved- and guided-diffusion against a small network written here after the papers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from jaxdiff.networks.classifier import Classifier  # noqa: E402
from jaxdiff.originals import open_original  # noqa: E402
from jaxdiff.pretrained import exchange  # noqa: E402
from jaxdiff.pretrained.adm import Ways, adm_config, classifier_shapes, dump, load  # noqa: E402
from jaxdiff.pretrained.unet import unet_shapes  # noqa: E402
from jaxdiff.pretrained.unet_names import original_names  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Residual(nn.Module):
    def __init__(self, inputs, outputs, emb, scale_shift, change=None):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, outputs * (1 + scale_shift)))
        last = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.0), last)
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.change, self.scale_shift = change or (lambda x: x), scale_shift

    def forward(self, x, emb):
        h = self.in_layers[2](self.change(self.in_layers[1](self.in_layers[0](x))))
        modulation = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = modulation.chunk(2, 1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + modulation)
        return self.skip_connection(self.change(x)) + h


def attend(qkv, heads, heads_first):
    """[b, 3 c, n] -> [b, c, n]; the outputs are (head, kind, channel), or (kind, head, channel)."""
    b, c, n = qkv.shape
    shape = (b, heads, 3, c // 3 // heads, n) if heads_first else (b, 3, heads, c // 3 // heads, n)
    q, k, v = qkv.reshape(shape).unbind(2 if heads_first else 1)
    weights = (q.transpose(-1, -2) @ k / math.sqrt(q.shape[2])).softmax(-1)
    return (v @ weights.transpose(-1, -2)).reshape(b, c // 3, n)


class Attention(nn.Module):
    def __init__(self, channels, ways):
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        self.heads = channels // ways.head_channels if ways.head_channels else ways.heads
        self.heads_first = ways.heads_first

    def forward(self, x, emb):
        h = self.qkv(self.norm(x).flatten(2))
        return x + self.proj_out(attend(h, self.heads, self.heads_first)).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Pool(nn.Module):
    def __init__(self, places, channels, head_channels, classes):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, places + 1) / channels**0.5)
        self.qkv_proj, self.c_proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, classes, 1)
        self.heads = channels // head_channels

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(-1, keepdim=True), x], -1) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads, heads_first=False))[:, :, 0]


class Net(nn.Module):
    """`size` with `classifier`: the side of its images; attention in the levels `attention`."""

    def __init__(
        self,
        channels,
        mults,
        blocks,
        attention,
        ways,
        updown,
        scale_shift=True,
        learned=True,
        classes=0,
        classifier=0,
        model=None,
    ):
        super().__init__()
        self.model = model or channels
        emb = 4 * self.model
        self.time_embed = nn.Sequential(nn.Linear(self.model, emb), nn.SiLU(), nn.Linear(emb, emb))
        if classes and not classifier:
            self.label_emb = nn.Embedding(classes, emb)
        residual = functools.partial(Residual, emb=emb, scale_shift=scale_shift)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, channels, 3, padding=1)])])
        width, skips = channels, [channels]
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                parts, width = [residual(width, channels * mult)], channels * mult
                parts += [Attention(width, ways)] * (level in attention)
                self.input_blocks.append(nn.ModuleList(parts))
                skips.append(width)
            if level + 1 < len(mults):
                halve = residual(width, width, change=lambda x: F.avg_pool2d(x, 2)) if updown else Down(width)
                self.input_blocks.append(nn.ModuleList([halve]))
                skips.append(width)
        self.middle_block = nn.ModuleList([residual(width, width), Attention(width, ways), residual(width, width)])
        if classifier:
            places = (classifier // 2 ** (len(mults) - 1)) ** 2
            self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), Pool(places, width, 64, classes))
            return
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            for i in range(blocks + 1):
                parts, width = [residual(width + skips.pop(), channels * mult)], channels * mult
                parts += [Attention(width, ways)] * (level in attention)
                if i == blocks and level:
                    double = functools.partial(F.interpolate, scale_factor=2.0)
                    parts += [residual(width, width, change=double) if updown else Up(width)]
                self.output_blocks.append(nn.ModuleList(parts))
        last = nn.Conv2d(width, 6 if learned else 3, 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), last)

    def forward(self, x, t, label=None):
        half = self.model // 2
        angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], -1))
        if label is not None:
            emb = emb + self.label_emb(label)
        h, skips = self.input_blocks[0][0](x), []
        skips.append(h)
        for parts in self.input_blocks[1:]:
            for part in parts:
                h = part(h, emb)
            skips.append(h)
        for part in self.middle_block:
            h = part(h, emb)
        for parts in getattr(self, "output_blocks", ()):
            h = torch.cat([h, skips.pop()], 1)
            for part in parts:
                h = part(h, emb)
        return self.out(h)


def filled(net):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def saved(net, path):
    torch.save(net.state_dict(), path)
    return path


IMPROVED = Ways(2, cosine=True, steps=4000, rescaled=True, size=16)
GUIDED = Ways(head_channels=16, heads_first=True, size=16)
NEW_ORDER = Ways(head_channels=16, heads_first=False, size=16)
SMALL = {
    "improved": (IMPROVED, dict(updown=False)),
    "improved, added embedding": (Ways(1, size=16), dict(updown=False, scale_shift=False, learned=False)),
    "guided": (GUIDED, dict(updown=True, classes=5)),
    "guided, new order": (NEW_ORDER, dict(updown=True, model=64)),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name, tmp_path):
    torch.set_num_threads(1)
    ways, changes = SMALL[name]
    theirs = filled(Net(32, (1, 2), 1, {1}, ways, **changes))
    original = open_original(saved(theirs, tmp_path / "model.pt"), ways)
    assert (original.size, original.channels) == (16, 3)

    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 16, 16, 3), np.float32)
    t = np.array([7.0, 403.25], np.float32)
    label = np.array([3, 0], np.int32) if changes.get("classes") else None
    with torch.no_grad():
        labels = None if label is None else torch.from_numpy(label)
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t), labels).numpy()
    cond = {} if label is None else {"label": jnp.asarray(label)}
    ours = quickly(original.network.apply)({"params": original.params}, jnp.asarray(x), jnp.asarray(t), cond)
    expected = expected.transpose(0, 2, 3, 1)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-4

    back = dump(original.params, original.network, ways.heads_first)
    state = theirs.state_dict()
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)


def test_small_classifier(tmp_path):
    theirs = filled(Net(32, (1, 2), 1, {1}, GUIDED, updown=True, classes=7, classifier=8))
    original = open_original(saved(theirs, tmp_path / "classifier.pt"), GUIDED)
    assert isinstance(original.network, Classifier) and original.network.num_classes == 7
    assert original.size == 8
    rng = np.random.default_rng(1)
    x, t = rng.standard_normal((2, 8, 8, 3), np.float32), np.array([7.0, 903.0], np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(t)).numpy()
    ours = quickly(original.network.apply)({"params": original.params}, jnp.asarray(x), jnp.asarray(t), {})
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-4
    back = dump(original.params, original.network, GUIDED.heads_first)
    for key, value in theirs.state_dict().items():
        np.testing.assert_array_equal(back[key], value.numpy(), err_msg=key)


REAL = {
    # channels, mults, blocks, levels with attention, updown, options, total
    "cifar10": (128, (1, 2, 2, 2), 3, {1, 2}, False, {}, 52_546_438),
    "imagenet64": (128, (1, 2, 3, 4), 3, {2, 3}, False, {}, 121_063_942),
    "imagenet64 cond": (192, (1, 2, 3, 4), 3, {2, 3}, False, {"classes": 1000}, 273_049_350),
    "lsun": (128, (1, 1, 2, 2, 4, 4), 2, {4}, False, {"scale_shift": False}, 113_676_678),
    "adm 64": (192, (1, 2, 3, 4), 3, {1, 2, 3}, True, {"classes": 1000}, 295_904_454),
    "adm 128": (256, (1, 1, 2, 3, 4), 2, {2, 3, 4}, True, {"classes": 1000}, 421_529_606),
    "adm 256": (256, (1, 1, 2, 2, 4, 4), 2, {3, 4, 5}, True, {"classes": 1000}, 553_838_086),
    "adm 256 uncond": (256, (1, 1, 2, 2, 4, 4), 2, {3, 4, 5}, True, {}, 552_814_086),
    "adm 512": (128, (1, 2, 2, 4, 4, 8, 8), 2, {4, 5, 6}, True, {"classes": 1000, "model": 256}, 558_997_638),
    "classifier 64": (128, (1, 2, 3, 4), 4, {1, 2, 3}, True, {"classifier": 64}, 65_438_568),
    "classifier 128": (128, (1, 1, 2, 3, 4), 2, {2, 3, 4}, True, {"classifier": 128}, 42_568_040),
    "classifier 256": (128, (1, 1, 2, 2, 4, 4), 2, {3, 4, 5}, True, {"classifier": 256}, 54_096_360),
    "classifier 512": (64, (1, 2, 2, 4, 4, 8, 8), 2, {4, 5, 6}, True, {"classifier": 512, "model": 128}, 54_448_360),
}


@pytest.mark.parametrize("name", REAL)
def test_published_networks_by_name_and_shape(name):
    channels, mults, blocks, attention, updown, options, total = REAL[name]
    if "classifier" in options:
        options = options | {"classes": 1000}
    with torch.device("meta"):
        theirs = Net(channels, mults, blocks, attention, Ways(4), updown, **options)
        shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    # One number looked at from everywhere, so that nothing is allocated.
    network = adm_config({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    unet = network.encoder if isinstance(network, Classifier) else network
    told = (unet.channels, unet.channel_mults, unet.blocks_per_level, set(unet.attention_levels), unet.resample_blocks)
    assert told == (channels, mults, blocks, attention, updown)
    assert sum(map(math.prod, shapes.values())) == total
    if name not in ("adm 64", "adm 256 uncond", "classifier 64"):  # the rest takes seconds
        return
    if isinstance(network, Classifier):
        side = options["classifier"] // 2 ** (len(mults) - 1)
        ours = classifier_shapes(network, 3, side)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(ours))
        assert count == sum(map(math.prod, shapes.values()))
        encoder = exchange.torch_shapes(ours["encoder"], original_names(network.encoder))
        assert encoder == {key: shape for key, shape in shapes.items() if not key.startswith("out.")}
        return
    ours = exchange.torch_shapes(unet_shapes(network, 3), original_names(network))
    if options.get("classes"):
        ours["label_emb.weight"] = (ours["label_emb.weight"][0] - 1, ours["label_emb.weight"][1])
    assert ours == shapes


def test_what_a_file_does_not_tell_must_be_said(tmp_path):
    path = saved(Net(32, (1, 2), 1, {1}, GUIDED, updown=True), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="--head-channels") as caught:
        open_original(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_an_upsampler_is_refused():
    state = {key: value.numpy() for key, value in Net(32, (1, 2), 1, {1}, GUIDED, updown=True).state_dict().items()}
    state["input_blocks.0.0.weight"] = np.repeat(state["input_blocks.0.0.weight"], 2, axis=1)
    with pytest.raises(ValueError, match="upsampler"):
        adm_config(state, GUIDED)


def test_weights_of_another_network_are_named():
    state = {key: value.numpy() for key, value in Net(32, (1, 2), 1, {1}, GUIDED, updown=True).state_dict().items()}
    network = adm_config(state, GUIDED)
    state["more.weight"] = state.pop("out.2.bias")
    state["time_embed.0.weight"] = state["time_embed.0.weight"].T
    with pytest.raises(ValueError, match="another network") as caught:
        load(state, network)
    for words in ("out.2.bias is missing", "more.weight is not known", "time_embed.0.weight is [32, 128] and not"):
        assert words in str(caught.value)
