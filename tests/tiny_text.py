"""The smallest run of the real commands that reads captions."""

TEXT = [
    *("emoji_text", "--data.size", "8", "--batch-size", "8", "--steps", "16", "--save-every", "8", "--log-every", "8"),
    *("--network.channels", "8", "--network.channel-mults", "1", "--network.transformer-depths", "1"),
    *("--network.middle-transformer", "0", "--network.no-middle-attention", "--network.head-channels", "4"),
    *("--network.text-width", "8", "--network.text-pooled", "8", "--network.text-encoder.width", "8"),
    *("--network.text-encoder.heads", "2", "--network.text-encoder.depth", "1", "--network.text-encoder.vocabulary"),
    *("300", "--preview-every", "0", "--sampling.steps", "2"),
    *("--optim.warmup", "0", "--optim.learning-rate", "0.03"),
]
