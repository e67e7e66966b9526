"""The folder of a run: new, the same run again, or somebody else's; its config; and files that stay as written."""

import json
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from etils import epath

import jaxdiff

Json = dict[str, Any]
"""What `json.dumps` takes."""

FINGERPRINTS = "files.json"
"""Size and CRC-32 of the files of a folder, by their names in it."""


def prepare_workdir(
    workdir: epath.PathLike,
    config: Json,
    ignore: Collection[str] = (),
    flag: Callable[[str], str] | None = None,
    up_to_date: Callable[[Json], Json] = lambda config: config,
) -> None:
    """Makes the folder of a new run, or checks that it holds the same run; writes `config.json`.

    Raises: ValueError, in one line, where the folder holds something else, or a run whose config differs
    (`check_config`, which explains `ignore` and `flag`), or where it cannot be written. `up_to_date`: what an older
    version's config is today.
    """
    root = epath.Path(workdir)
    if jax.process_index() != 0:
        return
    try:
        found = [p.name for p in root.iterdir()] if root.exists() else []
        if "config.json" in found:
            check_config(root, up_to_date(read_config(root)), config, ignore, flag)
        elif foreign := sorted(n for n in found if not n.startswith(".") and n != "lost+found"):
            raise ValueError(
                f"workdir {root} holds {foreign[0]}, but no run of jaxdiff: use a new or empty folder (--workdir)"
            )
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / "config.json", {"jaxdiff": jaxdiff.__version__, "config": config})
    except OSError as error:
        raise ValueError(f"workdir {root} cannot be written: {error.strerror or error} (--workdir)") from error


def read_config(workdir: epath.PathLike) -> Json:
    """The config that the run in `workdir` was last started with.

    Raises: FileNotFoundError without one, ValueError where `config.json` is of something else.
    """
    file = epath.Path(workdir) / "config.json"
    if not file.exists():
        raise FileNotFoundError(f"{workdir} holds no run: there is no {file}, which train.py writes (--workdir)")
    try:
        content = json.loads(file.read_text())
        if isinstance(content, dict) and "jaxdiff" in content:
            return content["config"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError):
        pass
    raise ValueError(f"{file} was not written by jaxdiff: use another folder (--workdir)")


def check_config(
    workdir: epath.PathLike,
    stored: Json,
    current: Json,
    ignore: Collection[str] = (),
    flag: Callable[[str], str] | None = None,
) -> None:
    """Raises a ValueError, in one line, that names what differs between two configs.

    Args:
        ignore: dotted names that may differ, with all that is below them ("optim" is also "optim.rule.b1").
        flag: the flag that sets a dotted name; without it "--" and the name with dashes.
    """
    flag = flag or (lambda name: "--" + name.replace("_", "-"))
    differ = [
        f"{name} = {_short(old)}, this one has {_short(new)}" + (f" ({flag(name)})" if is_value else "")
        for name, old, new, is_value in _differences("", _as_json(stored), _as_json(current))
        if not any(name == i or name.startswith(i + ".") for i in ignore)
    ]
    if differ:
        more = f"; and {len(differ) - 4} more" if len(differ) > 4 else ""
        what = "; ".join(differ[:4]) + more
        raise ValueError(f"workdir {workdir} holds a run with {what}: use the same, or another --workdir")


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = value.get("type", json.dumps(value)) if isinstance(value, dict) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any, bool]]:
    """(dotted name, old, new, can a flag set it) of the topmost values that differ: types before numbers."""
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if lists and any(isinstance(v, dict) for v in old + new):  # a tuple of numbers is one value
        old, new = ({str(i): v for i, v in enumerate(x)} for x in (old, new))
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}" if name else key, old.get(key), new.get(key))
    elif json.dumps(old) != json.dumps(new) and old != new:
        yield name, old, new, not isinstance(old, dict) and not isinstance(new, dict)


def write_json(file: epath.Path, content: Json) -> None:
    """Writes the file whole or, if the process is killed, not at all.

    An object store has no renaming: there the part is copied and deleted, and a copy, too, is whole or not there.
    """
    part = file.parent / f".{file.name}.part"
    part.write_text(json.dumps(content, indent=1))
    part.replace(file)


def append_line(file: epath.Path, line: str) -> None:
    """Adds a line to a text file, which then holds all of it or, if the process is killed, none.

    The file is written anew: an object store cannot add to one.
    """
    part = file.parent / f".{file.name}.part"
    part.write_text((file.read_text() if file.exists() else "") + line + "\n")
    part.replace(file)


def write_fingerprints(folder: epath.Path) -> None:
    """Notes the files below the folder, for `find_damage`."""
    files = {str(p.relative_to(folder)): _fingerprint(p) for p in _walk(folder)}
    write_json(folder / FINGERPRINTS, files)


def find_damage(folder: epath.Path) -> str | None:
    """What is wrong with the files of an item, one folder below the one with the fingerprints; None without any."""
    listed = folder.parent / FINGERPRINTS
    if not listed.exists():
        return None
    try:
        files = json.loads(listed.read_text())
    except ValueError:
        return f"{listed.name} cannot be read"
    for name, (size, crc) in files.items():
        if name.startswith(folder.name + "/"):
            file = folder.parent / name
            if not file.exists():
                return f"{name} is missing"
            if _fingerprint(file) != [size, crc]:
                return f"{name} is not what was written (it had {size:,} bytes)"
    return None


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for p in sorted(folder.iterdir()):
        if p.is_dir():
            yield from _walk(p)
        else:
            yield p


def _fingerprint(file: epath.Path) -> list[int]:
    size = crc = 0
    with file.open("rb") as f:
        while part := f.read(1 << 20):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]
