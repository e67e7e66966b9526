"""Edit pictures with a trained model: jaxdiff edit DIR --image FILE --out OUT [--prompt P] [--mask M] [--method M] ...

Without a mask the whole picture is varied (sdedit); with one, what is white in it is made anew (replace) and all else
comes back bit for bit. docs/editing.md shows every method.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath
from jaxtyping import Int

from jaxdiff import cli
from jaxdiff.commands.edit_job import Job, Told, batches, before_after, make
from jaxdiff.config import Config
from jaxdiff.core.cond import absent
from jaxdiff.editor import check_edit, unguided, with_method
from jaxdiff.inputs import Fit, Given, Margins, Prepared, enlarged, prepare, read_masks, read_pictures, size_of
from jaxdiff.names import GRIDS, METHODS, RULES, SOLVERS, value_of
from jaxdiff.networks.unet import UNet
from jaxdiff.outputs import prepare_out, write_images
from jaxdiff.sampler import codec_of
from jaxdiff.sampling.editing.inversion import Interpolate
from jaxdiff.sampling.editing.keep import ILVR
from jaxdiff.sampling.editing.prompt_to_prompt import PromptToPrompt, aligned
from jaxdiff.sampling.editing.sdedit import Generate
from jaxdiff.sampling.editing.task import Method
from jaxdiff.sampling.editing.windows import Windows
from jaxdiff.settings import Settings, find_label
from jaxdiff.trained import Leaves, Trained, open_trained
from jaxdiff.training import hosts
from jaxdiff.training.cpu import use_cpu


@dataclasses.dataclass(frozen=True)
class Command:
    """Edit pictures with a trained model."""

    dir: Annotated[epath.Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A run's folder, a model's, or the name of one that ships, as in sample.py."""
    out: epath.Path
    """Folder for grid.png, before_after.png, the images, and info.json."""
    image: epath.Path | None = None
    """The picture, or a folder of pictures, each of which is edited."""
    mask: epath.Path | None = None
    """White where the picture is to be made anew: one file for all, or a folder with a mask of each picture's name."""
    method: str | None = None
    """How, by name or with fields: "repaint(jump=5, times=10)" (by default sdedit; with a mask replace, with --image2
    interpolate, with --canvas generate)."""
    strength: float | None = None
    """Share of the steps that are taken, above 0 to 1: how far the picture may change (by default the method's)."""
    num: int | None = None
    """Results for each picture, of different noise (by default 4, or 1 where nothing is left to chance); of two
    pictures the frames from one to the other (8)."""
    source_prompt: str | None = None
    """For the inversions: what the picture shows, in words; --prompt then says what it shall show."""
    source_label: str | None = None
    """For the inversions: the picture's class, by number or by name."""
    image2: epath.Path | None = None
    """A second picture, to interpolate to."""
    fit: Fit = "none"
    """How a picture of another size than the network's is met: refused, scaled and cut, scaled and framed in white,
    squeezed, or left as it is and seen by the network in overlapping windows."""
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels to be made anew beyond the picture's left, top, right and bottom edge."""
    canvas: tuple[int, int] | None = None
    """In place of --image: height and width of a new picture larger than the network's."""
    seamless: bool = False
    """The result tiles the plane: its left edge goes on at the right one, its top at the bottom."""
    overlap: float = 0.5
    """Least share of a window that the next one shares."""
    image_scale: float | None = None
    """Of a network that is shown the picture: strength of guidance along it, beside --cfg-scale along the words (by
    default 1, none)."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = Settings()

    def __post_init__(self) -> None:
        if self.num is not None and not 1 <= self.num < 2**31:
            raise ValueError(f"num = {self.num} is not allowed: 1 to {2**31 - 1} (--num)")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength = {self.strength:g} is not allowed: above 0, at most 1 (--strength)")
        if (self.image is None) == (self.canvas is None):
            raise ValueError("say what is edited (--image FILE), or how large a new picture is (--canvas HEIGHT WIDTH)")

    @property
    def masked(self) -> bool:
        """Whether some of the picture stays as it is."""
        return self.mask is not None or any(self.outpaint)


def method_of(command: Command, config: Config) -> str:
    """What --method says, or means where it is not said."""
    if command.method is not None:
        return command.method
    if command.image is None or config.image_channels:
        return "generate"
    if command.image2 is not None:
        return "interpolate"
    return "replace" if command.masked else "sdedit"


def check(command: Command, method: Method, name: str, config: Config) -> None:
    """Refuses flags that do not belong together. Raises: ValueError."""
    if command.masked and method.mask == "none":
        taking = ", ".join(key for key, value in METHODS.items() if value.mask != "none")
        raise ValueError(f"{name} takes no mask, but {taking} do (--method, --mask, --outpaint)")
    if method.mask == "needed" and not command.masked:
        raise ValueError(f"{name} needs a mask, white where the picture is to be made anew (--mask, --outpaint)")
    if isinstance(method, Interpolate) != (command.image2 is not None):
        raise ValueError("interpolation needs two pictures, and nothing else does (--image2, --method interpolate)")
    if isinstance(method, Generate) != (command.image is None or config.image_channels > 0):
        raise ValueError("a new picture is made by generate, and by nothing else (--canvas, --method generate)")
    if config.image_channels and command.image is None:
        raise ValueError("this network makes pictures from the one that it is shown (--image)")
    if command.image_scale is not None and not (config.image_channels and config.sampling.cfg_scale > 0):
        raise ValueError(
            f"image_scale = {command.image_scale:g} is not allowed: it is for networks that are shown the picture, "
            "with a cfg_scale above 0 (--image-scale, --cfg-scale)"
        )
    said = command.settings.solver
    if said is not None and method.solver not in (None, value_of(said, SOLVERS, "--solver")):
        raise ValueError(f"solver {said} is not allowed: {name} has its own, leave it out (--solver)")
    if method.solver is None and (command.source_prompt is not None or command.source_label is not None):
        raise ValueError(f"{name} asks nothing about the source, the inversions do (--source-prompt, --source-label)")


def read_inputs(command: Command, config: Config, factor: int) -> tuple[list[Given], list[Prepared], Prepared | None]:
    """(files, pictures with their masks, second picture). Raises: ValueError or FileNotFoundError."""
    side, channels = config.data.size * factor, config.data.channels if config.latents is None else 3
    if command.canvas is not None:
        height, width = command.canvas
        if min(height, width) < side or height % factor or width % factor:
            raise ValueError(
                f"canvas {height} {width} is not allowed: multiples of {factor} from {side} on, the network's size "
                "(--canvas)"
            )
        return [], [Prepared(np.full((height, width, channels), 255, np.uint8), None)], None
    assert command.image is not None
    files = read_pictures(command.image, channels, "--image")
    masks = [None] * len(files) if command.mask is None else read_masks(command.mask, files)
    margins = Margins(*command.outpaint)
    small = config.data.low or side
    pictures = [prepare(f, m, small, command.fit, margins) for f, m in zip(files, masks, strict=True)]
    # What a network was shown of the pictures that it learned from, it is shown of this one.
    pictures = [picture._replace(image=enlarged(picture.image, small, side)) for picture in pictures]
    second = [] if command.image2 is None else read_pictures(command.image2, channels, "--image2")[:1]
    others = [prepare(f, None, side, command.fit, flag="--image2") for f in second]
    first = pictures[0].image
    for file, picture in zip(files + second, pictures + others, strict=True):
        if picture.image.shape != first.shape or any(s % factor for s in picture.image.shape[:2]):
            raise ValueError(
                f"{file.file} comes to {size_of(picture.image)} pixels and {files[0].file} to {size_of(first)}: all "
                f"must have one size, a multiple of {factor} (--image, --image2, --fit)"
            )
    return files + second, pictures, next(iter(others), None)


def leaves_for(trained: Trained, prompt: str | None, label: str | None, flags: str) -> Leaves:
    """The conditions of a picture, absent where nothing is said. Raises: ValueError."""
    config, found = trained.config, {}
    knows_absent = getattr(config.objective, "drop", 0) > 0 or config.sampling.cfg_scale != 1
    if label is None and prompt is None and not knows_absent and (config.network.num_classes or trained.reader):
        raise ValueError(f"say what the picture shows: this network was told so of all that it learned from ({flags})")
    if config.network.num_classes or label is not None or trained.guides.classifier is not None:
        number = -1 if label is None else find_label(label, trained.label_names)
        found["label"] = np.full(1, number, np.int32)
    if prompt is not None and trained.reader is None:
        raise ValueError(f"prompt {prompt!r} is not allowed: this network knows no texts ({flags})")
    if trained.reader is not None:
        if prompt is not None:
            found |= trained.reader.conditions([prompt])
        else:
            leaves = {name: jnp.asarray(leaf) for name, leaf in trained.reader.conditions([""]).items()}
            found |= {**absent(leaves), **trained.reader.away(None, 1)}
    return found


def words_between(
    trained: Trained, method: Method, source: str | None, target: str | None
) -> Int[np.ndarray, "1 n"] | None:
    """Whose attention maps the target's words may take, None where the method takes none. Raises: ValueError."""
    network = trained.config.network
    if not isinstance(method, PromptToPrompt):
        return None
    if trained.reader is None or not (isinstance(network, UNet) and network.text_width):
        raise ValueError("this network does not attend to words, as prompt-to-prompt needs (--method)")
    if source is None or target is None or trained.settings.also:
        raise ValueError("prompt-to-prompt needs --source-prompt and --prompt, and takes no --and (--method)")
    return aligned(*trained.reader.ids([source, target]).tolist())[None]


def told_of(command: Command, trained: Trained, method: Method) -> Told:
    """What the network is told: of the result what is said of the source, unless something else is said of it."""
    settings, prompt, label = command.settings, command.source_prompt, command.source_label
    source = leaves_for(trained, prompt, label, "--source-prompt, --source-label")
    wanted = prompt if settings.prompt is None else settings.prompt
    target = leaves_for(trained, wanted, label if settings.label is None else settings.label, "--prompt, --label")
    # Negative-prompt inversion: guidance leads away from the source, whose own noise gives it back at any scale.
    said = prompt is not None or label is not None
    negative = source if said else trained.reader and trained.reader.away(None, 1)
    if settings.negative_prompt is not None:
        negative = leaves_for(trained, settings.negative_prompt, None, "--negative-prompt")
    return Told(target, source, negative, words_between(trained, method, prompt, settings.prompt))


def open_job(command: Command) -> tuple[Job, list[Given], str]:
    """(what is to be done, the files, the method by name), everything read and checked.

    Raises: ValueError or FileNotFoundError, one line that names the flag.
    """
    trained = open_trained(command.dir, command.settings)
    name = method_of(command, trained.config)
    method = value_of(name, METHODS, "--method")
    check(command, method, name, trained.config)
    config = with_method(trained.config, method)
    if says_nothing(command) and not config.image_channels:
        config = unguided(config)  # there is nothing to guide along
    trained = dataclasses.replace(trained, config=config)
    factor = 1 if config.latents is None else config.latents.factor
    wide = command.seamless or command.canvas is not None or command.fit == "windows"
    windows = Windows(config.data.size, command.overlap, command.seamless) if wide else None
    check_edit(config, method, windows)
    told = told_of(command, trained, method)
    files, pictures, other = read_inputs(command, config, factor)
    if isinstance(method, ILVR):
        height, width = (s // factor for s in pictures[0].image.shape[:2])
        method.check_size(height, width)
    levels = method.lay(trained.levels, method.strength if command.strength is None else command.strength)
    codec = codec_of(config, command.settings.tile)
    num = method.num if command.num is None else command.num
    size = min(command.settings.batch_size, len(pictures) * num)
    trained = dataclasses.replace(trained, settings=dataclasses.replace(trained.settings, batch_size=size))
    given = (pictures, other, told, num, command.image_scale)
    return Job(trained, method, levels, windows, codec, factor, *given), files, name


def says_nothing(command: Command) -> bool:
    """Whether the network is told nothing of the result, so that guidance would change nothing."""
    settings = command.settings
    said = (settings.prompt, settings.label, settings.negative_prompt, command.source_prompt, command.source_label)
    return all(one is None for one in said) and not settings.also and settings.guide is None


def info_of(command: Command, job: Job, files: Sequence[Given], name: str) -> dict[str, object]:
    """The record of an edit."""
    fields = dataclasses.fields(job.method)  # pyright: ignore[reportArgumentType]
    said = {"prompt": command.settings.prompt, "source_prompt": command.source_prompt, "label": command.settings.label}
    said |= {"source_label": command.source_label, "mask": None if command.mask is None else str(command.mask)}
    flags = {"outpaint": list(command.outpaint), "fit": command.fit, "seamless": command.seamless}
    return {
        "workdir": str(command.dir),
        "image": [file.file for file in files],
        "image_sha256": [file.sha256 for file in files],
        "num": job.num,
        "method": name,
        "method_fields": {f.name: getattr(job.method, f.name) for f in fields},
        "strength": job.method.strength if command.strength is None else command.strength,
        **job.trained.description(),
        **{key: value for key, value in said.items() if value is not None},
        **flags,
        **({} if job.windows is None else {"windows": dataclasses.asdict(job.windows)}),
        **({} if command.image_scale is None else {"image_scale": command.image_scale}),
        "nfe": job.nfe,
    }


def edit(command: Command) -> None:
    """Edits, and writes everything under `command.out`."""
    job, files, name = open_job(command)
    parts = list(batches(job))  # before anything is written: a codec may lack the half that encodes
    out = prepare_out(command.out)
    started = time.monotonic()
    results = make(job, parts)
    seconds = time.monotonic() - started
    if not hosts.is_first():
        return
    info = info_of(command, job, files, name) | {"seconds": round(seconds, 3)}
    sheets = {} if command.image is None else {"before_after.png": before_after(job, results)}
    write_images(out, results, info, sheets=sheets)
    calls = "" if job.nfe is None else f", {job.nfe} network calls each"
    print(f"{len(results)} images in {out} ({seconds:.1f} s{calls})")


def main(args: Sequence[str]) -> None:
    """The command."""
    with cli.user_errors():
        named = {"Methods": METHODS, "Solvers": SOLVERS, "Grids": GRIDS, "Guidance": RULES}
        words = "\n".join(f"{kind}: {', '.join(table)}." for kind, table in named.items())
        command = cli.parse(Command, "jaxdiff edit", args, description=f"{__doc__}\n{words}")
        use_cpu(command.settings.batch_size // hosts.count())
        edit(command)
