"""What the commands share: flags read by tyro, and a user's mistake as one line on standard error."""

import contextlib
import dataclasses
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Generic, NoReturn, TypeVar

import jax
import tyro

from jaxdiff.data.cache import user_cache
from jaxdiff.training import hosts
from jaxdiff.training.hosts import Hosts
from jaxdiff.training.monitor import Diverged

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Line(Generic[T]):
    """What a command line says: the command's own flags, and those of every command."""

    command: Annotated[T, tyro.conf.arg(name="")]
    hosts: Annotated[Hosts, tyro.conf.arg(name="")] = Hosts()


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def parse(
    cls: type[T],
    prog: str,
    args: Sequence[str],
    default: T | None = None,
    description: str = "",
    preemptible: bool = False,
) -> T:
    """The flags as a value of `cls`, after this process has met the others where there are any (`hosts.connect`).

    A mistake ends the program with one line, `--help` prints the help. Compiled programs are kept (`keep_programs`).
    """
    keep_programs()
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config = (tyro.conf.AvoidSubcommands,)
            whole = _Line[cls]
            if default is None:
                line = tyro.cli(whole, prog=prog, args=args, description=description, config=config)
            else:
                line = tyro.cli(
                    whole, prog=prog, args=args, description=description, config=config, default=_Line(default)
                )
    except SystemExit as stop:
        if not stop.code:
            raise
        fail(f"{one_line(errors.getvalue())} (see {prog} --help)")
    hosts.connect(line.hosts, preemptible)
    return line.command


def keep_programs() -> None:
    """Has compiled programs kept for later runs in the user's cache; JAX_COMPILATION_CACHE_DIR names another folder,
    and empty none."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(user_cache("programs")))


def one_line(box: str) -> str:
    """The sentences of tyro's framed error message, without the frame, the help texts and the advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = [row.strip(" │") for row in text.splitlines() if not row.startswith(("╭", "╰"))]
    kept = []
    for row in rows:
        if row.startswith(("─", "For full helptext", "Argument helptext")):
            break
        kept.append(row)
    return " ".join(row for row in kept if row)


def code_of(error: BaseException) -> int:
    """2 where starting again would end alike, which is a mistake or a divergence; 1 where it may help."""
    return 2 if isinstance(error, ValueError | FileNotFoundError | Diverged) else 1


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that a user can mend into one line; JAXDIFF_DEBUG=1 shows the traceback instead.

    Whatever ends one process of many ends all of them.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        one_line = isinstance(error, ValueError | OSError | Diverged) and os.environ.get("JAXDIFF_DEBUG") != "1"
        if hosts.is_many():
            if isinstance(error, KeyboardInterrupt):
                hosts.end("stopped by SIGINT", 128 + signal.SIGINT)
            if not (one_line or hosts.is_broken(str(error))):
                traceback.print_exc()
            hosts.end(str(error) if one_line else f"{type(error).__name__}: {error}", code_of(error))
        if not one_line:
            raise
        fail(str(error), code_of(error))
