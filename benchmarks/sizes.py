"""What is compared: the same two networks on every side, and tiny ones for a look at whether all of it runs."""

from typing import Literal, NamedTuple

Network = Literal["unet", "dit"]
Task = Literal["train", "sample"]
Precision = Literal["float32", "bfloat16"]
Device = Literal["", "cpu", "cuda"]


class Size(NamedTuple):
    """The numbers of both networks. The image is 32 x 32: with 3 channels for the U-Net, 4 latent ones for the DiT."""

    channels: int = 128
    """Of the U-Net's first level; twice as many at the three below, two blocks each, attention at 16 x 16."""
    width: int = 384
    """Of the DiT's tokens."""
    depth: int = 12
    """The DiT's blocks."""
    heads: int = 6
    """The DiT's attention heads."""


FULL = Size()
"""DDPM's network for CIFAR-10 (35.7 M parameters), and DiT-S/2."""
QUICK = Size(channels=32, width=96, depth=2, heads=2)

SIDE = 32
CHANNELS: dict[Network, int] = {"unet": 3, "dit": 4}
TIMES = 1000
"""Steps of the discrete chain."""
BETAS = (1e-4, 0.02)
"""Its first and last beta."""
CLIP: dict[Network, float] = {"unet": 1.0, "dit": 0.0}
"""Largest norm of the gradient, as in the published recipes; 0 for none."""
DROPOUT: dict[Network, float] = {"unet": 0.1, "dit": 0.0}
RATE = 2e-4
DECAY = 0.9999
"""Of the averaged parameters."""


class Spec(NamedTuple):
    """One comparison; JSON as a dictionary of its fields."""

    network: Network
    task: Task
    batch: int
    calls: int = 4
    """Network calls of a sampling run."""
    size: tuple[int, int, int, int] = FULL
    compiled: bool = False
    """For PyTorch: torch.compile."""
    side: int = SIDE
    """Of the images; jaxdiff's side alone has others."""
    precision: Precision = "float32"
    """Of the network's computations; parameters and their averages are float32."""
    device: Device = ""
    """Where `benchmarks.gpu` runs it; "" for the comparison on a CPU."""


def spec_of(fields: dict) -> Spec:
    """The spec in a message."""
    return Spec(**{**fields, "size": Size(*fields["size"])})
