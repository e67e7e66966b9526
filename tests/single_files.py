"""Small pipelines of random weights, and their tensors by the names of the original programs' single files."""

import re
from typing import Any

import diffusers
import torch
import transformers
from small_tokenizers import clip_tokenizer, clip_words

TEXT: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=1, projection_dim=64,
    vocab_size=len(clip_words()[0]), max_position_embeddings=77, bos_token_id=0, eos_token_id=2,
)  # fmt: skip
UNET = {
    "sample_size": 8,
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
LINEAR = {"attention_head_dim": [1, 2], "use_linear_projection": True}
UNETS = {
    "sd1": UNET,
    "sd2": UNET | LINEAR,
    "sdxl": UNET
    | LINEAR
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 128,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 64 + 6 * 256,
    },
}


def filled(model, scale=0.05):
    """The model with no weight at zero, so that none hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def vae(latents=4, quant=True):
    """A small autoencoder of factor 2."""
    return filled(
        diffusers.AutoencoderKL(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=latents,
            up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=quant, use_post_quant_conv=quant,
        )
    )  # fmt: skip


def clip(activation="quick_gelu", projected=False, layers=2):
    """A small text tower."""
    config = transformers.CLIPTextConfig(**TEXT | {"hidden_act": activation, "num_hidden_layers": layers})
    return filled((transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config))


def pipeline(name, unet, vae, texts):
    """diffusers' pipeline of these parts, as it is published."""
    steps = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    pads = {"sd2": {"text_encoder": "!"}}.get(name, {"text_encoder_2": "!"})
    tokenizers = {
        part.replace("text_encoder", "tokenizer"): clip_tokenizer(pads.get(part, "<|endoftext|>")) for part in texts
    }
    if name == "sdxl":
        vae.register_to_config(scaling_factor=0.13025)
        scheduler = diffusers.EulerDiscreteScheduler(**steps, timestep_spacing="leading")
        return diffusers.StableDiffusionXLPipeline(
            unet=unet, vae=vae, **texts, **tokenizers, scheduler=scheduler, add_watermarker=False
        )
    if name == "sd1":
        scheduler = diffusers.PNDMScheduler(**steps, skip_prk_steps=True, set_alpha_to_one=False)
    else:
        v = {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False}
        scheduler = diffusers.DDIMScheduler(**steps, **v)
    return diffusers.StableDiffusionPipeline(
        unet=unet, vae=vae, **texts, **tokenizers, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def state_of(model):
    """Its tensors, a text tower's with the prefix that published files have."""
    state = dict(model.state_dict())
    if isinstance(model, transformers.CLIPTextModel):
        state = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}
    return state


def original_vae(state, levels=2):
    """Of latent-diffusion: the decoder's sizes from the picture's own, 1x1 convolutions in the attention."""
    found = {}
    for name, value in state.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        for up in range(levels):
            name = name.replace(f"up_blocks.{up}.resnets.", f"up.{levels - 1 - up}.block.")
            name = name.replace(f"up_blocks.{up}.upsamplers.0.", f"up.{levels - 1 - up}.upsample.")
        name = name.replace("mid_block.resnets.0.", "mid.block_1.").replace("mid_block.resnets.1.", "mid.block_2.")
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if ".mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            for new, old in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                name = name.replace(f".{new}.", f".{old}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[name] = value
    return found


def open_clip(state):
    """Of OpenCLIP."""
    found, layers = {}, {}
    for name, value in state.items():
        if match := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            number, layer, kind = match.groups()
            words = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
            block = f"transformer.resblocks.{number}."
            if layer[:-6] == "self_attn." and layer[-6] in "qkv":
                layers.setdefault(f"{block}attn.in_proj_{kind}", {})[layer[-6]] = value
            else:
                found[f"{block}{words.get(layer, 'attn.out_proj')}.{kind}"] = value
        elif name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        else:
            name = name.replace("text_model.final_layer_norm", "ln_final")
            name = name.replace("text_model.embeddings.position_embedding.weight", "positional_embedding")
            found[name.replace("text_model.embeddings.token_embedding", "token_embedding")] = value
    return found | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in layers.items()}


def below(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def original_flux(state, depth, single):
    """Of FLUX.1's own file."""
    found = {}

    def take(new, *old, kinds=("weight", "bias")):
        for kind in kinds:
            found[f"{new}.{kind}"] = torch.cat([state[f"{name}.{kind}"] for name in old])

    def norm(new, old):
        found[f"{new}.scale"] = state[f"{old}.weight"]

    take("img_in", "x_embedder")
    take("txt_in", "context_embedder")
    for new, old in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance")):
        for i, end in ((1, "in_layer"), (2, "out_layer")):
            take(f"{new}_in.{end}", f"time_text_embed.{old}_embedder.linear_{i}")
    names = {
        "img": ("norm1", [f"attn.to_{x}" for x in "qkv"], "attn.norm_{}", "attn.to_out.0", "ff"),
        "txt": (
            "norm1_context", [f"attn.add_{x}_proj" for x in "qkv"], "attn.norm_added_{}", "attn.to_add_out",
            "ff_context",
        ),
    }  # fmt: skip
    for i in range(depth):
        new, old = f"double_blocks.{i}.", f"transformer_blocks.{i}."
        for side, (mod, qkv, norms, out, mlp) in names.items():
            take(f"{new}{side}_mod.lin", f"{old}{mod}.linear")
            take(f"{new}{side}_attn.qkv", *(old + name for name in qkv))
            norm(f"{new}{side}_attn.norm.query_norm", old + norms.format("q"))
            norm(f"{new}{side}_attn.norm.key_norm", old + norms.format("k"))
            take(f"{new}{side}_attn.proj", old + out)
            take(f"{new}{side}_mlp.0", f"{old}{mlp}.net.0.proj")
            take(f"{new}{side}_mlp.2", f"{old}{mlp}.net.2")
    for i in range(single):
        new, old = f"single_blocks.{i}.", f"single_transformer_blocks.{i}."
        take(f"{new}modulation.lin", f"{old}norm.linear")
        take(f"{new}linear1", *(f"{old}attn.to_{x}" for x in "qkv"), f"{old}proj_mlp")
        norm(f"{new}norm.query_norm", f"{old}attn.norm_q")
        norm(f"{new}norm.key_norm", f"{old}attn.norm_k")
        take(f"{new}linear2", f"{old}proj_out")
    take("final_layer.linear", "proj_out")
    for kind in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    return found


def original_sd3(width, depth, dual, text, pooled, channels, grid):
    """Random tensors with the names and shapes of SD3.5's own file."""
    shapes = {"pos_embed": (1, grid**2, width), "x_embedder.proj.weight": (width, channels, 2, 2)}
    layers = {
        "context_embedder": (width, text), "t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
        "y_embedder.mlp.0": (width, pooled), "y_embedder.mlp.2": (width, width),
        "final_layer.adaLN_modulation.1": (2 * width, width), "final_layer.linear": (4 * channels, width),
    }  # fmt: skip
    for i in range(depth):
        for side in ("x_block", "context_block"):
            block, last = f"joint_blocks.{i}.{side}.", side == "context_block" and i == depth - 1
            two = side == "x_block" and i in dual
            for attention in ("attn", "attn2")[: 1 + two]:
                layers[f"{block}{attention}.qkv"] = (3 * width, width)
                for x in "qk":
                    shapes[f"{block}{attention}.ln_{x}.weight"] = (64,)
                if not last:
                    layers[f"{block}{attention}.proj"] = (width, width)
            layers[f"{block}adaLN_modulation.1"] = ((2 if last else 9 if two else 6) * width, width)
            if not last:
                layers |= {f"{block}mlp.fc1": (4 * width, width), f"{block}mlp.fc2": (width, 4 * width)}
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()} | {"x_embedder.proj.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
