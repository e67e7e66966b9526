"""What a config.json of diffusers' U-Nets may say, and what it means where it does not."""

from collections.abc import Mapping
from typing import TypeAlias

Json: TypeAlias = Mapping[str, object]

PLAIN, CONDITION = "UNet2DModel", "UNet2DConditionModel"
"""The two classes: with labels at most, and with texts."""

DEFAULTS: Mapping[str, Json] = {
    PLAIN: {
        "in_channels": 3,
        "out_channels": 3,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": 0.0,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "add_attention": True,
        "mid_block_type": "UNetMidBlock2D",
        "num_class_embeds": None,
    },
    CONDITION: {
        "in_channels": 4,
        "out_channels": 4,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "downsample_padding": 1,
        "dropout": 0.0,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "default",
        "num_class_embeds": None,
        "class_embed_type": None,
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    },
}
"""What a config.json means where it does not say."""

ONLY: Mapping[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "dual_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (False, None),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "time_embedding_type": ("positional",),
}
"""What other fields may say; those in neither table may say nothing, which is null."""

SILENT = ("sample_size", "upcast_attention", "addition_embed_type_num_heads", "num_train_timesteps")
"""Fields that change nothing here: attention is in float32 anyway, and a network runs at any size."""
