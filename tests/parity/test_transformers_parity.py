"""Transformers against diffusers' with the same random weights, and the published networks by their shapes alone."""

import math

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from jaxdiff.networks.flux import packed  # noqa: E402
from jaxdiff.pretrained import dit, flux, mmdit, pixart, rows  # noqa: E402

RNG = np.random.default_rng(0)
TOKENS = RNG.standard_normal((2, 5, 20)).astype(np.float32)
POOLED = RNG.standard_normal((2, 12)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0, 0], [1] * 5], np.float32)
TIME = np.array([3.0, 700.0], np.float32)
SCALE = np.array([3.5, 2.0], np.float32)
SIZE = np.array([[0, 0, 0, 0, 64, 32], [0, 0, 0, 0, 32, 64]], np.float32)
LABEL = np.array([1, 4])

tensor = torch.from_numpy


def random_weights(model):
    """The model with no weight at zero, so that none hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def assert_equal(model, family, network, ask, cond):
    """The same output as `ask`, which calls the torch model with images NCHW, and a round trip of the weights."""
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    params = family.load(arrays, network)
    back = family.dump(params, network)
    assert back.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    x = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)
    with torch.no_grad():
        theirs = ask(tensor(x.transpose(0, 3, 1, 2).copy())).numpy()
    quick = {"xla_backend_optimization_level": 0}
    ours = jax.jit(network.apply, compiler_options=quick)({"params": params}, x, TIME, cond)
    ours = np.asarray(ours if theirs.ndim == 4 else packed(ours))
    theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("guided", [True, False])
def test_flux(guided):
    model = random_weights(
        diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=20, pooled_projection_dim=12, guidance_embeds=guided, axes_dims_rope=(4, 6, 6),
        )
    )  # fmt: skip

    def ask(x):
        patches = x.view(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16)
        places = torch.zeros(4, 4, 3)
        places[..., 1] += torch.arange(4)[:, None]
        places[..., 2] += torch.arange(4)[None]
        return model(
            patches, encoder_hidden_states=tensor(TOKENS), pooled_projections=tensor(POOLED),
            timestep=tensor(TIME) / 1000, img_ids=places.reshape(16, 3), txt_ids=torch.zeros(5, 3),
            guidance=tensor(SCALE) if guided else None,
        ).sample  # fmt: skip

    cond = {"text_tokens": TOKENS, "text_pooled": POOLED, "guidance_scale": SCALE}
    assert_equal(model, flux, flux.flux_config(dict(model.config)), ask, cond)


@pytest.mark.parametrize(
    "more",
    [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}],
    ids=["SD3", "SD3.5-large", "SD3.5-medium"],
)
def test_stable_diffusion_3(more):
    model = random_weights(
        diffusers.SD3Transformer2DModel(
            sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=20, caption_projection_dim=32, pooled_projection_dim=12, pos_embed_max_size=6, **more,
        )
    )  # fmt: skip
    cond = {"text_tokens": TOKENS, "text_pooled": POOLED}
    network = mmdit.mmdit_config(dict(model.config))
    assert_equal(model, mmdit, network, lambda x: model(x, tensor(TOKENS), tensor(POOLED), tensor(TIME)).sample, cond)


@pytest.mark.parametrize("sized", [True, False], ids=["alpha", "sigma"])
def test_pixart(sized):
    model = random_weights(
        diffusers.PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=24, num_layers=2, cross_attention_dim=48, sample_size=8,
            interpolation_scale=2, use_additional_conditions=sized, caption_channels=20,
        )
    )  # fmt: skip
    resolution = tensor(SIZE[:, 4:].copy())
    more = {"resolution": resolution, "aspect_ratio": resolution[:, :1] / resolution[:, 1:]}
    more = more if sized else dict.fromkeys(more)

    def ask(x):
        return model(x, tensor(TOKENS), tensor(TIME), more, encoder_attention_mask=tensor(MASK)).sample

    cond = {"text_tokens": TOKENS, "text_mask": MASK, "size": SIZE}
    assert_equal(model, pixart, pixart.pixart_config(dict(model.config)), ask, cond)


def small_dit():
    """Random weights; published ones have the same noise and label embedder in every block, and so has this."""
    model = random_weights(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=2, sample_size=8,
            num_embeds_ada_norm=10,
        )
    )  # fmt: skip
    model.transformer_blocks[1].norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def test_dit():
    model = small_dit()
    network = dit.dit_config(dict(model.config))
    assert_equal(model, dit, network, lambda x: model(x, tensor(TIME), tensor(LABEL)).sample, {"label": LABEL})


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named():
    model = small_dit()
    network = dit.dit_config(dict(model.config))
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    name = "transformer_blocks.1.attn1.to_q.weight"
    for wrong in (
        {k: v for k, v in arrays.items() if k != name},
        arrays | {f"{name}.more": arrays[name]},
        arrays | {name: arrays[name][:-1]},
    ):
        with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn1\.to_q\.weight") as refused:
            dit.load(wrong, network)
        assert "\n" not in str(refused.value)


PUBLISHED = {
    "SD3-medium": (
        diffusers.SD3Transformer2DModel, mmdit, mmdit.mmdit_config, 16, 128, 2_028_328_000,
        {"sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
         "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
         "pooled_projection_dim": 2048, "pos_embed_max_size": 192},
    ),
    "FLUX.1-dev": (
        diffusers.FluxTransformer2DModel, flux, flux.flux_config, 16, 64, 11_901_408_320,
        {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
         "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True},
    ),
    "DiT-XL/2": (
        diffusers.DiTTransformer2DModel, dit, dit.dit_config, 4, 32, None,
        {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
         "sample_size": 32, "num_embeds_ada_norm": 1000},
    ),
    "PixArt-XL/2": (
        diffusers.PixArtTransformer2DModel, pixart, pixart.pixart_config, 4, 128, None,
        {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "sample_size": 128,
         "cross_attention_dim": 1152, "interpolation_scale": 2, "use_additional_conditions": True,
         "caption_channels": 4096},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_these_tensors(name):
    make, family, configure, channels, side, total, config = PUBLISHED[name]
    with torch.device("meta"):
        model = make(**config)
    theirs = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    network = configure(dict(model.config))
    ours = rows.published(rows.shapes_of(network, channels, side), family.rows(network))
    assert {key: tuple(shape) for key, shape in ours.items()} == theirs
    if total is not None:
        assert sum(p.numel() for p in model.parameters()) == total
    assert all(math.prod(shape) for shape in theirs.values())
