"""Named runs: functions without arguments that return a `Config`, one file a family."""

from collections.abc import Callable, Mapping

from jaxdiff.config import Config
from jaxdiff.presets import cifar10, emoji, eurosat, imagenet64, imagenet256, medical, subject

PRESETS: Mapping[str, Callable[[], Config]] = {
    preset.__name__: preset
    for preset in (
        emoji.smileys,
        emoji.emoji,
        emoji.emoji_text,
        emoji.emoji_text_minilm,
        emoji.emoji64_vae,
        emoji.emoji_text_latent,
        emoji.emoji_sr,
        emoji.emoji_edit,
        emoji.emoji_vdm,
        emoji.emoji_edm2,
        emoji.fashion_mnist,
        emoji.fashion_mnist_classifier,
        medical.pneumonia_mnist,
        medical.pneumonia_mnist_normal,
        medical.brain_slices,
        eurosat.eurosat,
        subject.dreambooth,
        subject.textual_inversion,
        cifar10.cifar10_ddpm,
        cifar10.cifar10_iddpm,
        cifar10.cifar10_vp,
        cifar10.cifar10_ve,
        cifar10.cifar10_vdm,
        cifar10.cifar10_edm,
        cifar10.cifar10_flow,
        imagenet64.imagenet64_adm,
        imagenet64.imagenet64_edm,
        imagenet64.imagenet64_edm2_s,
        imagenet256.imagenet256_dit_s2,
        imagenet256.imagenet256_dit_b2,
        imagenet256.imagenet256_dit_l2,
        imagenet256.imagenet256_dit_xl2,
        imagenet256.imagenet256_sit_xl2,
    )
}
"""Every preset by its name on the command line."""


def preset(name: str) -> Config:
    """The preset of this name. Raises: ValueError, listing the names."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}: allowed are {', '.join(PRESETS)} (train.py PRESET)")
    return PRESETS[name]()
