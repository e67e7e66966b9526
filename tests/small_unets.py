"""Small U-Nets as diffusers writes their config.json, for the tests that compare with it."""

SD1 = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
}
"""Like Stable Diffusion 1."""

SDXL = SD1 | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2],
    "use_linear_projection": True,
    "attention_head_dim": [2, 4],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 10 + 6 * 8,
}
"""Like SDXL, with pooled texts of 10 numbers."""
