"""Write what a run has trained on top of another one, as a file for diffusers: jaxdiff lora DIR FILE.

A LoRA becomes the .safetensors that diffusers' load_lora_weights reads (and sample.py --lora), with its scale in it; a
new word becomes learned embeddings, as load_textual_inversion reads them.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from etils import epath

from jaxdiff import cli
from jaxdiff.adapters import dump_adapter
from jaxdiff.checkpoints import read_part
from jaxdiff.pretrained import safetensors


@dataclasses.dataclass(frozen=True)
class Command:
    """Write a LoRA, or learned embeddings, for other programs."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The run's folder, train.py's --workdir."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The .safetensors to write."""
    step: int | None = None
    """Step of the checkpoint (by default the last)."""
    ema: str | None = None
    """Which average, as in sample.py (by default the first)."""


def main(args: Sequence[str]) -> None:
    """Writes the file that the flags ask for."""
    with cli.user_errors():
        command = cli.parse(Command, "jaxdiff lora", args, description=__doc__ or "")
        if command.file.suffix != ".safetensors":
            raise ValueError(f"file {command.file} is not allowed: name a .safetensors (FILE)")
        config, _, part = read_part(command.dir, command.step, command.ema)
        arrays = dump_adapter(config, part)
        command.file.parent.mkdir(parents=True, exist_ok=True)
        safetensors.write(command.file, arrays)
        print(f"{len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers in {command.file}")
