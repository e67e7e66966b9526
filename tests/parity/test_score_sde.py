"""Score SDE's checkpoints against a small Flax network written here after the paper, numbered by Flax itself."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from jaxdiff.networks.resample import downsample, smooth, upsample
from jaxdiff.originals import open_original
from jaxdiff.pretrained.adm import Ways

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
INIT = nn.initializers.normal(0.1)
Conv = functools.partial(nn.Conv, kernel_init=INIT, bias_init=INIT)
Dense = functools.partial(nn.Dense, kernel_init=INIT, bias_init=INIT)


def norm(x):
    return nn.GroupNorm(num_groups=min(x.shape[-1] // 4, 32), scale_init=INIT, bias_init=INIT)(x)


class NIN(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return x @ self.param("W", INIT, (x.shape[-1], self.features)) + self.param("b", INIT, (self.features,))


class AttnBlockpp(nn.Module):
    @nn.compact
    def __call__(self, x):
        c, h = x.shape[-1], norm(x)
        q, k, v = NIN(c)(h), NIN(c)(h), NIN(c)(h)
        weights = jnp.einsum("bhwc,bijc->bhwij", q, k) / math.sqrt(c)
        weights = jax.nn.softmax(weights.reshape(*weights.shape[:3], -1)).reshape(weights.shape)
        return (x + NIN(c)(jnp.einsum("bhwij,bijc->bhwc", weights, v))) / math.sqrt(2)


class ResnetBlockBigGANpp(nn.Module):
    features: int
    change: object = None

    @nn.compact
    def __call__(self, x, emb):
        h = nn.silu(norm(x))
        if self.change:
            h, x = self.change(h), self.change(x)
        h = Conv(self.features, (3, 3))(h) + Dense(self.features)(nn.silu(emb))[:, None, None]
        h = Conv(self.features, (3, 3))(nn.silu(norm(h)))
        if self.change or x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1))(x)
        return (x + h) / math.sqrt(2)


class Conv2d(nn.Module):
    features: int
    taps: tuple

    @nn.compact
    def __call__(self, x):
        kernel = self.param("weight", INIT, (3, 3, x.shape[-1], self.features))
        x = jax.lax.conv_general_dilated(
            smooth(x, self.taps), kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return x + self.param("bias", INIT, (self.features,))


class Downsample(nn.Module):
    features: int
    taps: tuple

    @nn.compact
    def __call__(self, x):
        return Conv2d(self.features, self.taps)(x)


class GaussianFourierProjection(nn.Module):
    @nn.compact
    def __call__(self, t):
        angle = 2 * jnp.pi * t[:, None] * self.param("W", nn.initializers.normal(16.0), (32,))
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


class Net(nn.Module):
    """32 and 64 channels, two levels of one block, attention at 16 pixels."""

    exploding: bool

    @nn.compact
    def __call__(self, x, t):
        taps = (1, 3, 3, 1) if self.exploding else (1, 1)
        down, up = functools.partial(downsample, taps=taps), functools.partial(upsample, taps=taps)
        if self.exploding:
            emb = GaussianFourierProjection()(jnp.log(t))
        else:
            angle = t[:, None] * 10000.0 ** (-jnp.arange(16) / 15)
            emb = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)
        emb = Dense(128)(emb)  # a line each: Flax numbers modules when they are made
        emb = Dense(128)(nn.silu(emb))
        pyramid, hs = x, [Conv(32, (3, 3))(x)]
        hs.append(ResnetBlockBigGANpp(32)(hs[-1], emb))
        h = ResnetBlockBigGANpp(32, down)(hs[-1], emb)
        if self.exploding:
            h = (Downsample(32, taps)(pyramid) + h) / math.sqrt(2)
        hs.append(h)
        hs.append(AttnBlockpp()(ResnetBlockBigGANpp(64)(h, emb)))
        h = ResnetBlockBigGANpp(64)(hs[-1], emb)
        h = ResnetBlockBigGANpp(64)(AttnBlockpp()(h), emb)
        for width in (64, 32):
            for _ in range(2):
                h = ResnetBlockBigGANpp(width)(jnp.concatenate([h, hs.pop()], -1), emb)
            if width == 64:
                h = ResnetBlockBigGANpp(64, up)(AttnBlockpp()(h), emb)
        h = Conv(3, (3, 3))(nn.silu(norm(h)))
        return h / t[:, None, None, None] if self.exploding else h


def checkpoint(path, params):
    other = jax.tree.map(lambda a: a + 1, params)
    state = {"step": 7, "optimizer": {"target": {"params": other}}, "ema_rate": 0.999, "params_ema": params}
    path.write_bytes(serialization.to_bytes({**state, "lr": 2e-4, "rng": jnp.zeros(2, jnp.uint32)}))
    return path


@pytest.mark.parametrize("exploding", [False, True], ids=["vp", "ve"])
def test_small_networks(tmp_path, exploding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 32, 32, 3), np.float32))
    theirs, t = Net(exploding), jnp.array([0.4, 7.0])
    params = theirs.init(jax.random.key(0), x, t)["params"]
    original = open_original(checkpoint(tmp_path / "checkpoint_7", params))
    assert (original.size, original.channels) == (32, 3)
    # Score SDE's time of VP is 999 t; of VE it is the sigma of images in [0, 1], half of ours.
    level = original.path(original.path.invert(2 * t) if exploding else t / 999)
    score_or_eps = quickly(theirs.apply)({"params": params}, x, t)
    eps = -score_or_eps * t[:, None, None, None] if exploding else score_or_eps
    fed = original.prediction.c_noise(level)
    ours = quickly(original.network.apply)({"params": original.params}, x, fed, {})
    assert np.abs(ours - eps).max() / np.abs(eps).max() < 1e-4


def test_missing_parts_are_named(tmp_path):
    params = jax.eval_shape(Net(True).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1))["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    del params["ResnetBlockBigGANpp_2"]["Conv_1"]["bias"]
    with pytest.raises(ValueError, match=r"ResnetBlockBigGANpp_2\.Conv_1\.bias is missing"):
        open_original(checkpoint(tmp_path / "checkpoint_7", params), Ways(size=32))


def test_values_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "checkpoint_7"
    path.write_bytes(serialization.to_bytes({"step": 1, "params_ema": {"a": 1j}}))
    with pytest.raises(ValueError, match="kind 2"):
        open_original(path)
