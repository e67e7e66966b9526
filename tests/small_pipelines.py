"""Small text-to-image pipelines of diffusers, of random weights and tokenizers of a few words, for tests of parity."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from small_tokenizers import clip_tokenizer, clip_words, t5_tokenizer
from small_unets import SD1, SDXL

VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "scaling_factor": 0.4,
}
HEADS = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 2}
SD_STEPS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def filled(model, scale=0.05):
    """The model with no weight at zero, so that none hides a mistake."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def clip(width: int, projection: int | None = None, act="quick_gelu", depth=3, end: int | None = None):
    """A text tower; `end` None: the end of a text is the vocabulary's own."""
    vocab = len(clip_words()[0])
    config = transformers.CLIPTextConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth,
        num_attention_heads=2, max_position_embeddings=77, hidden_act=act, projection_dim=projection or 8,
        eos_token_id=vocab - 1 if end is None else end, bos_token_id=vocab - 2, pad_token_id=0,
    )  # fmt: skip
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return filled(kind(config), 0.2)


def t5(width: int):
    config = transformers.T5Config(
        vocab_size=len(t5_tokenizer()) + 5, d_model=width, d_kv=5, d_ff=24, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    return filled(transformers.T5EncoderModel(config), 0.2)


def vae(**more):
    return filled(diffusers.AutoencoderKL(**VAE | more))


def sd(prediction="epsilon", scheduler: Any = None, encoder: Any = None, pad="<|endoftext|>", **unet):
    scheduler = scheduler or diffusers.PNDMScheduler(**SD_STEPS, skip_prk_steps=True, set_alpha_to_one=False)
    return diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder or clip(12, end=2), tokenizer=clip_tokenizer(pad), scheduler=scheduler,
        unet=filled(diffusers.UNet2DConditionModel.from_config(SD1 | unet), 0.1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sd2():
    """v-prediction, linear projections, heads of equal channels, OpenCLIP's tower and pads."""
    scheduler = diffusers.DDIMScheduler(
        **SD_STEPS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
    more = {"use_linear_projection": True, "attention_head_dim": [2, 4]}
    return sd(scheduler=scheduler, encoder=clip(12, act="gelu", depth=2), pad="!", **more)


def sdxl(zeros=True):
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(4), text_encoder_2=clip(8, 10, "gelu"), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer("!"), unet=filled(diffusers.UNet2DConditionModel.from_config(SDXL), 0.1),
        scheduler=diffusers.EulerDiscreteScheduler(**SD_STEPS, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def sd3(with_t5=True):
    transformer = diffusers.SD3Transformer2DModel(
        **HEADS, sample_size=8, in_channels=4, joint_attention_dim=20, caption_projection_dim=32,
        pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=filled(transformer, 0.1), vae=vae(shift_factor=0.1),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip(4, 6), text_encoder_2=clip(8, 10, "gelu"), text_encoder_3=t5(20) if with_t5 else None,
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer("!"), tokenizer_3=t5_tokenizer() if with_t5 else None,
    )  # fmt: skip


def flux(guidance=True):
    transformer = diffusers.FluxTransformer2DModel(
        **HEADS, in_channels=16, num_single_layers=1, joint_attention_dim=20, pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6), guidance_embeds=guidance,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return diffusers.FluxPipeline(
        transformer=filled(transformer, 0.1), vae=vae(shift_factor=0.1), scheduler=scheduler,
        text_encoder=clip(12), tokenizer=clip_tokenizer(), text_encoder_2=t5(20), tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def pixart(kind: Any, sizes: bool):
    transformer = diffusers.PixArtTransformer2DModel(
        **HEADS | {"attention_head_dim": 12}, sample_size=8, in_channels=4, out_channels=8, caption_channels=20,
        cross_attention_dim=24, use_additional_conditions=sizes,
    )  # fmt: skip
    return kind(
        transformer=filled(transformer, 0.1), vae=vae(), scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=t5(20), tokenizer=t5_tokenizer(),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd1": sd,
    "sd2": sd2,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart-alpha": lambda: pixart(diffusers.PixArtAlphaPipeline, True),
    "pixart-sigma": lambda: pixart(diffusers.PixArtSigmaPipeline, False),
}
