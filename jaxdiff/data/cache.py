"""Where what can be made again is kept on this machine."""

import os

from etils import epath


def user_cache(kind: str) -> epath.Path:
    """The folder for one kind of thing: $XDG_CACHE_HOME/jaxdiff/KIND, or ~/.cache/jaxdiff/KIND."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return epath.Path(home).expanduser() / "jaxdiff" / kind
