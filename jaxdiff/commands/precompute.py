"""Encode a set of images once, for latent diffusion: jaxdiff precompute SOURCE OUT --codec taef2=ENCODER [-- BEAM...]

Writes ArrayRecord shards and a features.json, which train.py reads with --data.source records:OUT. A command that was
interrupted goes on where it stopped when it is started again. The shards are shared out over the processes of
--workers, over commands with --part 1/4 ... 4/4, or, by whatever follows "--", over the workers of an Apache Beam
pipeline.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from jaxdiff import cli
from jaxdiff.commands.encoding import Encoding, header_of, make_shard, recipe, tools_of
from jaxdiff.data.shards import begin, is_whole, write_header


@dataclasses.dataclass(frozen=True)
class Command:
    """Encode a set of images once."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The images: whatever train.py takes as --data.source."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder of the shards."""
    options: Annotated[Encoding, tyro.conf.arg(name="")] = Encoding()
    workers: int = 1
    """Processes of this machine. One is enough where there is an accelerator."""
    part: str = "1/1"
    """I/N: make only shards I, I + N, I + 2N ..., so that N such commands anywhere share the work."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 999:
            raise ValueError(f"workers = {self.workers} is not allowed: 1 to 999 (--workers)")
        turn(self.part)

    @property
    def encoding(self) -> Encoding:
        """All that the records depend on."""
        return dataclasses.replace(self.options, source=self.source)


def turn(part: str) -> tuple[int, int]:
    """(I - 1, N) of "I/N". Raises: ValueError."""
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"part {part!r} is not allowed: I/N with I from 1 to N (--part)")
    return int(index) - 1, int(count)


def through_beam(command: Command, shards: Sequence[int], options: Sequence[str]) -> None:
    """Makes the shards by a pipeline, each an element of its own. Raises ValueError without the package."""
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"Beam is not installed: pip install 'jaxdiff[beam]' ({error}) (--)") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        numbers = pipeline | "shards" >> beam.Create(list(shards)) | "share out" >> beam.Reshuffle()
        _ = numbers | "encode" >> beam.Map(functools.partial(make_shard, command.encoding, command.out))


def made(command: Command, shards: Sequence[int]) -> Iterable[int]:
    """Makes the shards in this process or in several, and yields each number when it is done."""
    if command.workers == 1:
        yield from (make_shard(command.encoding, command.out, shard) for shard in shards)
        return
    fresh = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
    with concurrent.futures.ProcessPoolExecutor(command.workers, mp_context=fresh) as pool:
        waiting = [pool.submit(make_shard, command.encoding, command.out, shard) for shard in shards]
        try:
            yield from (done.result() for done in concurrent.futures.as_completed(waiting))
        finally:
            pool.shutdown(cancel_futures=True)


def precompute(command: Command, beam: Sequence[str] | None = None) -> None:
    """Makes the missing shards, and features.json when all are there; `beam`: the options of a pipeline."""
    tools, shards = tools_of(command.encoding), command.encoding.shards
    if shards > len(tools.source):
        raise ValueError(f"shards = {shards} is not allowed: at most {len(tools.source)} images (--shards)")
    begin(command.out, recipe(command.encoding, tools))
    index, count = turn(command.part)
    mine = range(index, shards, count)
    missing = [k for k in mine if not is_whole(command.out, k, shards)]
    if beam is not None:
        through_beam(command, missing, beam)
    else:
        for _ in tqdm(made(command, missing), total=len(mine), initial=len(mine) - len(missing), unit="shard"):
            pass
    left = [k for k in range(shards) if not is_whole(command.out, k, shards)]
    if left:
        print(f"{len(left)} of {shards} shards are still to be made, by other parts (--part)")
        return
    header = header_of(command.encoding, tools, command.out)
    write_header(command.out, header)
    size = sum((command.out / name).stat().st_size for name in header.shards)
    shape = " x ".join(map(str, header.image.shape))
    flags = f"--data.source records:{command.out} --data.size {header.image.shape[0]}"
    flags += f" --data.channels {header.image.shape[2]}"
    print(f"{header.count} images as {header.image.dtype} {shape} in {command.out} ({size / 1e6:.1f} MB); {flags}")


def main(args: Sequence[str]) -> None:
    """The command."""
    with cli.user_errors():
        args = list(args)
        beam = args[args.index("--") + 1 :] if "--" in args else None
        own = args[: args.index("--")] if "--" in args else args
        precompute(cli.parse(Command, "jaxdiff precompute", own, description=__doc__ or ""), beam)
