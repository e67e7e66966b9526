"""jaxdiff COMMAND ...: what is done with runs besides training and sampling them."""

import sys
from collections.abc import Callable, Mapping, Sequence

from jaxdiff.commands import anomaly, audit, convert, edit, evaluate, grid, lora, plan, precompute, restore, scan

COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "anomaly": anomaly.main,
    "audit": audit.main,
    "convert": convert.main,
    "edit": edit.main,
    "evaluate": evaluate.main,
    "grid": grid.main,
    "lora": lora.main,
    "plan": plan.main,
    "precompute": precompute.main,
    "restore": restore.main,
    "scan": scan.main,
}
"""Every command by its name."""


def main() -> None:
    """Runs the command that the first argument names."""
    args = sys.argv[1:]
    if args and args[0] in COMMANDS:
        COMMANDS[args[0]](args[1:])
        return
    about = {name: (sys.modules[run.__module__].__doc__ or "").splitlines()[0] for name, run in COMMANDS.items()}
    lines = [f"  {name:10} {text}" for name, text in about.items()]
    text = "\n".join([__doc__ or "", "", "commands:", *lines, "", "jaxdiff COMMAND --help lists the flags of one."])
    if args and args[0] not in ("-h", "--help"):
        print(f"error: there is no command {args[0]!r}: allowed are {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    print(text)
    raise SystemExit(0 if args else 2)


if __name__ == "__main__":
    main()
