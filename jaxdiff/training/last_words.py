"""Runs beside one process of many and reads what native code writes to its standard error.

JAX ends a process that has lost another one from native code, with a long report and a stack. This program passes
everything else on, and says in one line what that report means. It is a program of its own because the other one is
ended without warning, and imports only what is small, so that it starts at once.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence

RECORD = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ (\S+):\d+\] ")
"""The head of a record of native code's log: the file that wrote it."""
SOURCES = (
    *("client.h", "coordination_service.cc", "coordination_service_agent.cc"),
    *("preemption_notifier.cc", "preemption_sync_manager.cc"),
)
"""The files of JAX's coordination service."""
MORE = re.compile(r"^(Additional GRPC|:UNKNOWN|:UNAVAILABLE|RPC: |The |This |Barrier |INTERNAL|\S*\d+$|$)")
"""How further lines of their records begin."""
LAST = "Terminating process because the JAX distributed service detected fatal errors"

AGAIN = "the same command, started again everywhere, goes on from what was saved"


def meaning(report: str, seconds: str, meet: str) -> str:
    """What a last report says, in one line.

    `seconds` without a sign of life end a process; `meet` says how long processes waited for each other, and where.
    """
    if "RegisterTask" in report or ("DEADLINE_EXCEEDED" in report and "Deadline Exceeded" in report):
        return f"the processes have not all met {meet} (--coordinator, --num-processes, --connect-timeout)"
    who, have = "another process", "has"
    if silent := re.search(r"stopped sending heartbeats\):\n((?:\S*\d+\n)+)", report):
        numbers = re.findall(r"(\d+)\n", silent[1])
        who, have = called(numbers)
    elif found := re.search(r"[Tt]ask (\d+) heartbeat timeout", report):
        who, have = called([found[1]])
    elif "leader task" in report:
        who, have = called(["0"])
    return f"{who} {have} died or cannot be reached (or gave no sign of life for {seconds} s): {AGAIN}"


def called(numbers: Sequence[str]) -> tuple[str, str]:
    """ "process 1", "has", or "processes 1, 2", "have"."""
    return (f"process {numbers[0]}", "has") if len(numbers) == 1 else (f"processes {', '.join(numbers)}", "have")


def passed_on(lines: Iterable[str], seconds: str, meet: str) -> Iterator[str]:
    """The lines that are not the coordination service's, and in place of its last report what that means."""
    inside, last = False, ""
    for line in lines:
        if last:
            if line.startswith("*** Check failure"):
                yield f"error: {meaning(last, seconds, meet)}\n"
                return
            last += line
        elif head := RECORD.match(line):
            inside = head[1] in SOURCES
            if inside and LAST in line:
                last = line
            elif not inside:
                yield line
        elif not (inside and MORE.match(line)):
            inside = False
            yield line
    if last:
        yield f"error: {meaning(last, seconds, meet)}\n"


def main() -> None:
    sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    for line in passed_on(sys.stdin, *sys.argv[1:]):
        sys.stderr.write(line)
        sys.stderr.flush()
    # What follows the last report is its stack.
    for _ in sys.stdin:
        pass


if __name__ == "__main__":
    main()
