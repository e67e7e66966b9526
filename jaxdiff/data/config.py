"""What a run reads: one frozen dataclass, whose field names are the command line's flags."""

from dataclasses import dataclass
from typing import Literal

from jaxdiff.data.units import window_of

Crop = Literal["center", "random", "none"]
Plane = Literal["axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class Data:
    """A source of images and what is done to each of them.

    Raises ValueError, with one line that names the flag, where a field is out of its range.
    """

    source: str
    """Images to read: `emoji`, `emoji:CATEGORY`, `fashion_mnist[:DIR]`, `medmnist:FILE`, `tfds:NAME[:DIR]`,
    a folder or a .zip of images (with or without metadata.jsonl), an .npz with `images`, `dicom:PLACE` and
    `nifti:PLACE` (a file or a folder), or `records:DIR`, which `jaxdiff precompute` wrote."""

    size: int
    """Side of the square images in pixels; larger and smaller pictures are resized to it. Of latents: their side."""

    channels: int = 3
    """Colour channels: 3 (RGB) or 1 (grey). Pictures of the other kind are converted. Of latents: theirs."""

    flip: bool = False
    """Mirror each image left to right with probability 1/2."""

    crop: Crop = "center"
    """How a picture becomes square: `center` and `random` scale its short side to `size` and cut a window
    there, `none` squeezes the whole picture."""

    labels: bool = True
    """Give the labels to the network, if the set has any."""

    classes: tuple[str, ...] = ()
    """Take the pictures of these classes alone, by name or number, which are then the set's only classes; empty: all.
    Held out and validated are pictures of the same classes."""

    window: tuple[float, float] | None = None
    """The values that become black and white, of images of more than 8 bits: of CT in Hounsfield units, -160 240. By
    default the window that a DICOM or NIfTI file has itself, or else the range of its values."""

    plane: Plane = "axial"
    """How volumes of `nifti:` are cut into slices."""

    text: bool = False
    """Give the captions to the network, read by the run's `text`."""

    keywords: bool = False
    """Say captions in other words as well: half of the time with the keywords of metadata.jsonl, or by them alone."""

    caption: str = ""
    """The caption of every picture, such as "a photo of <my-toy>"; empty: those that the set has."""

    prior: str = ""
    """Pictures of the subject's class, such as a folder that sample.py filled, learned beside those of `source` so
    that the class is not forgotten (DreamBooth's prior preservation); empty: none."""

    prior_caption: str = ""
    """The caption of every one of those; empty: those that they have."""

    prior_weight: float = 1.0
    """How much those count, in proportion to the others."""

    low: int = 0
    """Show the network each picture shrunk to this side and enlarged again (super-resolution); 0: not."""

    low_noise: float = 0.0
    """Most standard deviation of the noise on such pictures, in units of half their range; each draws its own."""

    pairs: bool = False
    """Show the network the picture of `source_file_name` in metadata.jsonl, from which each one is made; with
    `text`, its `edit` is the caption."""

    split: str = "train"
    """Part of the set to train on, where the set has parts: `train`, `test`; with TFDS also `train[:10%]`."""

    holdout: float = 0.0
    """Fraction in [0, 0.5] kept out of training for validation, always the same images. At 0 validation
    reads the set's own validation or test split, if it has one."""

    skip_broken: bool = False
    """Skip images that cannot be read, and count them, rather than stop at the first one."""

    augment: float = 0.0
    """Probability in [0, 1] of each of EDM's geometric augmentations, whose parameters the network is told
    (arXiv:2206.00364, App. F.2; 0.12 for CIFAR-10)."""

    workers: int = 0
    """Processes that read ahead. 0 reads in threads of this process, enough for sets that fit in memory."""

    def __post_init__(self) -> None:
        check(bool(self.source), "source", self.source, "the name of a set or a path")
        check(self.size >= 1, "size", self.size, "at least 1")
        latent = self.source.startswith("records:") and self.channels >= 1
        check(self.channels in (1, 3) or latent, "channels", self.channels, "1 or 3")
        check(self.crop in ("center", "random", "none"), "crop", self.crop, "center, random or none")
        check(bool(self.split), "split", self.split, "the name of a split, such as train")
        check(0 <= self.holdout <= 0.5, "holdout", self.holdout, "in [0, 0.5]")
        check(0 <= self.augment <= 1, "augment", self.augment, "in [0, 1]")
        check(0 < self.prior_weight <= 1000, "prior_weight", self.prior_weight, "in (0, 1000]")
        window_of(self.window)
        check(self.plane in ("axial", "coronal", "sagittal"), "plane", self.plane, "axial, coronal or sagittal")
        check(0 <= self.low < self.size, "low", self.low, f"from 0 to below the size, {self.size}")
        check(0 <= self.low_noise <= 1, "low_noise", self.low_noise, "in [0, 1]")
        shows = bool(self.low) + self.pairs
        deep = latent or self.is_deep
        check(shows < 2 and not (shows and deep), "pairs", self.pairs, "off with low; both with latents or a window")
        check(not (self.pairs and self.augment), "augment", self.augment, "0 with pairs")
        check(self.workers >= 0, "workers", self.workers, "at least 0")

    @property
    def is_deep(self) -> bool:
        """Whether pictures have more than 8 bits: they come as float32 in [-1, 1]."""
        return self.window is not None or self.source.startswith(("dicom:", "nifti:"))


def check(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ValueError naming the flag, its value and what is allowed, unless `ok`."""
    if not ok:
        raise ValueError(f"--data.{field.replace('_', '-')} must be {allowed}, got {value!r}")
