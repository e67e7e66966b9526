"""LoRA files against the same change made by hand in the torch model, and by peft where it is installed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from small_unets import SD1, SDXL  # noqa: E402

from jaxdiff.networks import lora as low_rank  # noqa: E402
from jaxdiff.networks.flux import packed  # noqa: E402
from jaxdiff.pretrained import flux, lora, mmdit, safetensors, unet  # noqa: E402

quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RANK, ALPHA, WEIGHT = 3, 5.0, 0.8
RNG = np.random.default_rng(0)
TOKENS = RNG.standard_normal((2, 5, 12)).astype(np.float32)
POOLED = RNG.standard_normal((2, 10)).astype(np.float32)
SIZE = np.array([[64, 48, 0, 3, 64, 64], [512, 768, 10, 0, 1024, 1024]], np.float32)
TIME = np.array([7.0, 803.0], np.float32)
X = RNG.standard_normal((2, 8, 8, 4)).astype(np.float32)

SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 32, "pooled_projection_dim": 10,
    "out_channels": 4, "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
}  # fmt: skip
FLUX = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 12, "pooled_projection_dim": 10, "guidance_embeds": False, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def ask_unet(model, x):
    added = {"text_embeds": torch.from_numpy(POOLED), "time_ids": torch.from_numpy(SIZE)}
    extra = {"added_cond_kwargs": added} if model.config.addition_embed_type else {}
    return model(x, torch.from_numpy(TIME), encoder_hidden_states=torch.from_numpy(TOKENS), **extra).sample


def ask_sd3(model, x):
    tokens, pooled = torch.from_numpy(TOKENS), torch.from_numpy(POOLED)
    time = torch.from_numpy(TIME)
    return model(x, encoder_hidden_states=tokens, pooled_projections=pooled, timestep=time).sample


def ask_flux(model, x):
    places = torch.zeros(4, 4, 3)
    places[..., 1] += torch.arange(4)[:, None]
    places[..., 2] += torch.arange(4)[None]
    return model(
        x.view(2, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 16),
        encoder_hidden_states=torch.from_numpy(TOKENS), pooled_projections=torch.from_numpy(POOLED),
        timestep=torch.from_numpy(TIME) / 1000, img_ids=places.reshape(16, 3), txt_ids=torch.zeros(5, 3),
    ).sample  # fmt: skip


FAMILIES = {
    "sd1": (diffusers.UNet2DConditionModel, SD1, unet, unet.unet_config, ask_unet),
    "sdxl": (diffusers.UNet2DConditionModel, SDXL, unet, unet.unet_config, ask_unet),
    "sd3": (diffusers.SD3Transformer2DModel, SD3, mmdit, mmdit.mmdit_config, ask_sd3),
    "flux": (diffusers.FluxTransformer2DModel, FLUX, flux, flux.flux_config, ask_flux),
}


@functools.cache
def opened(name):
    """(torch model with random weights, our family's module, our network, how torch is asked)."""
    torch.set_num_threads(1)
    cls, config, family, config_of, ask = FAMILIES[name]
    model = cls.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, family, config_of(config if family is unet else dict(model.config)), ask


def arrays_of(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def layers_of(model):
    """Every dense layer and convolution, with its weight's shape."""
    layers = torch.nn.Linear | torch.nn.Conv2d
    return {name: tuple(m.weight.shape) for name, m in model.named_modules() if isinstance(m, layers)}


def random_pairs(layers, seed=1):
    """Of each layer (down, up), as peft lays them out."""
    rng = np.random.default_rng(seed)
    ones = {name: (1,) * (len(shape) - 2) for name, shape in layers.items()}
    return {
        name: (
            0.3 * rng.standard_normal((RANK, *shape[1:])).astype(np.float32),
            0.3 * rng.standard_normal((shape[0], RANK, *ones[name])).astype(np.float32),
        )
        for name, shape in layers.items()
    }


def by_hand(arrays, pairs, weight):
    """The state dict with ``weight * up down`` added."""
    changed = dict(arrays)
    for name, (down, up) in pairs.items():
        delta = np.einsum("or,r...->o...", up.reshape(len(up), -1), down)
        changed[f"{name}.weight"] = changed[f"{name}.weight"] + weight * delta
    return changed


def output(network, params):
    cond = {"text_tokens": TOKENS, "text_pooled": POOLED, "size": SIZE}
    cond = {name: jnp.asarray(value) for name, value in cond.items()}
    ours = np.asarray(quickly(network.apply)({"params": params}, X, TIME, cond))
    return np.asarray(packed(jnp.asarray(ours))) if type(network).__name__ == "Flux" else ours


def theirs(model, ask, state=None):
    kept = arrays_of(model)
    with torch.no_grad():
        model.load_state_dict({name: torch.from_numpy(value) for name, value in (state or kept).items()})
        out = ask(model, torch.from_numpy(X.transpose(0, 3, 1, 2).copy())).numpy()
        model.load_state_dict({name: torch.from_numpy(value) for name, value in kept.items()})
    return out.transpose(0, 2, 3, 1) if out.ndim == 4 else out


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def peft_names(pairs, prefix=""):
    return {f"{prefix}{n}.lora_{ab}.weight": a for n, pair in pairs.items() for ab, a in zip("AB", pair, strict=True)}


def kohya_names(pairs, alpha=ALPHA):
    flat = {name.replace(".", "_"): pair for name, pair in pairs.items()}
    ways = ("down", "up")
    arrays = {f"lora_unet_{n}.lora_{w}.weight": a for n, p in flat.items() for w, a in zip(ways, p, strict=True)}
    return arrays | {f"lora_unet_{name}.alpha": np.float32(alpha) for name in flat}


def changes_of(arrays, tmp_path):
    file = tmp_path / "lora.safetensors"
    safetensors.write(file, {name: np.asarray(value) for name, value in arrays.items()})
    parts = lora.read(file)
    assert parts.keys() == {"network"}
    return parts["network"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_a_network(name, tmp_path):
    model, family, network, ask = opened(name)
    arrays, pairs = arrays_of(model), random_pairs(layers_of(model))
    changes = changes_of(peft_names(pairs, "unet." if family is unet else "transformer."), tmp_path)
    params = lora.merged(family.load(arrays, network), network, [(changes, WEIGHT)])
    state = by_hand(arrays, pairs, WEIGHT)
    back = family.dump(params, network)
    for key, value in state.items():
        np.testing.assert_allclose(back[key], value, atol=2e-6, err_msg=key)
    assert relative(output(network, params), theirs(model, ask, state)) < 1e-4
    assert relative(theirs(model, ask), theirs(model, ask, state)) > 0.1  # the change is no small one


@pytest.mark.parametrize("style", ["diffusers", "kohya", "attention processors"])
def test_other_ways_to_write_the_same(style, tmp_path):
    model, family, network, _ = opened("sd1")
    arrays, layers = arrays_of(model), layers_of(model)
    scale = 1.0
    if style == "diffusers":
        pairs = random_pairs(layers)
        words = ("down", "up")
        written = {f"unet.{n}.lora.{w}.weight": a for n, p in pairs.items() for w, a in zip(words, p, strict=True)}
    elif style == "kohya":
        pairs, scale = random_pairs(layers), ALPHA / RANK
        written = kohya_names(pairs)
    else:
        pairs = random_pairs({n: shape for n, shape in layers.items() if re.search(r"attn\d\.to_", n)})
        words = {n: n.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_") for n in pairs}
        written = {
            f"unet.{words[n]}_lora.{w}.weight": a
            for n, p in pairs.items()
            for w, a in zip(("down", "up"), p, strict=True)
        }
    changes = changes_of(written, tmp_path)
    params = lora.merged(family.load(arrays, network), network, [(changes, WEIGHT)])
    back = family.dump(params, network)
    for key, value in by_hand(arrays, pairs, WEIGHT * scale).items():
        np.testing.assert_allclose(back[key], value, atol=2e-6, err_msg=key)


ORIGINAL = {
    "input_blocks_3_1_transformer_blocks_1_attn2_to_k": "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "output_blocks_1_1_transformer_blocks_0_attn1_to_v": "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v",
    "output_blocks_2_0_skip_connection": "up_blocks.1.resnets.0.conv_shortcut",
    "label_emb_0_2": "add_embedding.linear_2",
}


def test_names_of_the_original_program_of_sdxl(tmp_path):
    model, family, network, _ = opened("sdxl")
    arrays, layers = arrays_of(model), layers_of(model)
    pairs = random_pairs({name: layers[name] for name in ORIGINAL.values()})
    changes = changes_of(kohya_names({ours: pairs[name] for ours, name in ORIGINAL.items()}), tmp_path)
    params = lora.merged(family.load(arrays, network), network, [(changes, 1.0)])
    back = family.dump(params, network)
    for key, value in by_hand(arrays, pairs, ALPHA / RANK).items():
        np.testing.assert_allclose(back[key], value, atol=2e-6, err_msg=key)


FUSED = {
    "flux": {
        "double_blocks_1_img_attn_qkv": [f"transformer_blocks.1.attn.to_{part}" for part in "qkv"],
        "double_blocks_0_txt_attn_qkv": [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"],
        "double_blocks_0_txt_mlp_2": ["transformer_blocks.0.ff_context.net.2"],
        "single_blocks_1_linear1": [
            *(f"single_transformer_blocks.1.attn.to_{part}" for part in "qkv"),
            "single_transformer_blocks.1.proj_mlp",
        ],
        "single_blocks_0_linear2": ["single_transformer_blocks.0.proj_out"],
    },
    "sd3": {
        "joint_blocks_0_x_block_attn2_qkv": [f"transformer_blocks.0.attn2.to_{part}" for part in "qkv"],
        "joint_blocks_2_context_block_attn_qkv": [f"transformer_blocks.2.attn.add_{part}_proj" for part in "qkv"],
        "joint_blocks_1_x_block_mlp_fc1": ["transformer_blocks.1.ff.net.0.proj"],
    },
}


@pytest.mark.parametrize("name", FUSED)
def test_one_layer_there_is_several_layers_here(name, tmp_path):
    model, family, network, _ = opened(name)
    arrays, layers = arrays_of(model), layers_of(model)
    wide, apart = {}, {}
    for fused, parts in FUSED[name].items():
        sizes = [layers[part][0] for part in parts]
        (pair,) = random_pairs({fused: (sum(sizes), layers[parts[0]][1])}).values()
        wide[fused] = pair
        ups = np.split(pair[1], np.cumsum(sizes)[:-1])
        apart |= {part: (pair[0], up) for part, up in zip(parts, ups, strict=True)}
    changes = changes_of(kohya_names(wide), tmp_path)
    params = lora.merged(family.load(arrays, network), network, [(changes, 1.0)])
    back = family.dump(params, network)
    for key, value in by_hand(arrays, apart, ALPHA / RANK).items():
        np.testing.assert_allclose(back[key], value, atol=2e-6, err_msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_factors_trained_here_are_written_for_others(name, tmp_path):
    model, family, network, ask = opened(name)
    params = family.load(arrays_of(model), network)
    factors = jax.eval_shape(lambda: low_rank.initial(jax.random.key(3), params, RANK, low_rank.any_kernel))
    rng = np.random.default_rng(4)
    factors = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), factors)
    trained = quickly(low_rank.merge)(params, factors, ALPHA / RANK)
    written = lora.dump(factors, network, ALPHA / RANK)
    # By our own reader, and by hand in torch.
    again = lora.merged(params, network, [(changes_of(written, tmp_path), 1.0)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), again, trained)
    prefix = "unet." if family is unet else "transformer."
    named = {n.removeprefix(prefix): a for n, a in written.items()}
    pairs = {n: (named[f"{n}.lora_A.weight"], named[f"{n}.lora_B.weight"]) for n in layers_of(model)}
    assert len(named) == 2 * len(pairs)
    state = by_hand(arrays_of(model), pairs, 1.0)
    back = family.dump(trained, network)
    for key, value in state.items():
        np.testing.assert_allclose(back[key], value, atol=3e-6, err_msg=key)
    pytest.importorskip("peft", reason="peft is not installed")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_lora_adapter({n: torch.from_numpy(a.copy()) for n, a in written.items()}, prefix=prefix[:-1])
    with torch.no_grad():
        out = ask(model, torch.from_numpy(X.transpose(0, 3, 1, 2).copy())).numpy()
    model.unload_lora()
    assert model.state_dict().keys() == before.keys()
    out = out.transpose(0, 2, 3, 1) if out.ndim == 4 else out
    assert relative(output(network, trained), out) < 1e-4


def test_alpha_that_peft_writes_beside_the_factors(tmp_path):
    from safetensors.numpy import save_file

    pairs = random_pairs({"conv_in": (32, 4, 3, 3), "mid_block.resnets.0.conv1": (64, 64, 3, 3)})
    head = {"lora_adapter_metadata": '{"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"conv1": 1.5}}'}
    save_file(peft_names(pairs, "unet."), tmp_path / "lora.safetensors", head)
    changes = lora.read(tmp_path / "lora.safetensors")["network"]
    assert {name: change.alpha for name, change in changes.items()} == {"conv_in": 6, "mid_block.resnets.0.conv1": 1.5}
    model, family, network, _ = opened("sd1")
    params = lora.merged(family.load(arrays_of(model), network), network, [(changes, 0.5)])
    back = family.dump(params, network)
    state = by_hand(arrays_of(model), {"conv_in": pairs["conv_in"]}, 0.5 * 6 / 3)
    np.testing.assert_allclose(back["conv_in.weight"], state["conv_in.weight"], atol=2e-6)


def test_files_of_other_networks_and_kinds_are_refused(tmp_path):
    model, family, network, _ = opened("sd1")
    params = family.load(arrays_of(model), network)
    pairs = random_pairs({"down_blocks.7.resnets.0.conv1": (32, 32, 3, 3)})
    with pytest.raises(ValueError, match=r"down_blocks\.7\.resnets\.0\.conv1 is not known") as refused:
        lora.merged(params, network, [(lora.parts_of(peft_names(pairs))["network"], 1.0)])
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"conv_in changes \[32, 40\] and not \[32, 36\]"):
        lora.merged(params, network, [(lora.parts_of(peft_names(random_pairs({"conv_in": (32, 40)})))["network"], 1.0)])
    with pytest.raises(ValueError, match="hada_w1_a is neither"):
        lora.parts_of({"lora_unet_conv_in.hada_w1_a": np.zeros((3, 4), np.float32)})
    with pytest.raises(ValueError, match="has no pair"):
        lora.parts_of({"conv_in.lora_A.weight": np.zeros((3, 4), np.float32)})
    with pytest.raises(FileNotFoundError, match="--lora"):
        lora.read(tmp_path / "none.safetensors")
    te = lora.parts_of({**kohya_names(pairs), **{
        f"lora_te2_text_model_layer.lora_{w}.weight": np.zeros((3, 3), np.float32) for w in ("down", "up")
    }})  # fmt: skip
    assert te.keys() == {"network", "text_encoder_2"}
