"""What the commands share: flags read by tyro, and a user's mistake as one line on standard error."""

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

import tyro

from jaxdiff.training.monitor import Diverged

T = TypeVar("T")


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line on standard error."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def parse(cls: type[T], prog: str, args: Sequence[str], default: T | None = None, description: str = "") -> T:
    """The flags as a value of `cls`; a mistake ends the program with one line, `--help` prints the help."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config = (tyro.conf.AvoidSubcommands,)
            if default is None:
                return tyro.cli(cls, prog=prog, args=args, description=description, config=config)
            return tyro.cli(cls, prog=prog, args=args, description=description, config=config, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        fail(f"{one_line(errors.getvalue())} (see {prog} --help)")


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


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that a user can mend into one line; JAXDIFF_DEBUG=1 shows the traceback instead."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        yield
    except (ValueError, OSError, Diverged) as error:
        if os.environ.get("JAXDIFF_DEBUG") == "1":
            raise
        fail(str(error), code=1)
