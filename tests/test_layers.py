"""Who may import whom: the table of docs/architecture.md, held by reading the imports of every file."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "jaxdiff"
FILES = sorted(ROOT.rglob("*.py"))

# A folder, or a module that lies beside the folders, and what of ours it may import besides itself.
LIBRARY = {"core", "networks", "objectives", "sampling", "data", "training", "evaluation", "pretrained"}
BUILDERS = LIBRARY | {
    "adapters",
    "autoencoders",
    "config",
    "presets",
    "build",
    "checkpoints",
    "cli",
    "codecs",
    "editor",
    "exports",
    "families",
    "fitted_grids",
    "inputs",
    "measurements",
    "models",
    "names",
    "originals",
    "outputs",
    "pipelines",
    "previews",
    "reconstruction",
    "restoration",
    "sampler",
    "schedulers",
    "settings",
    "singles",
    "starts",
    "texts",
    "trained",
}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "core": set(),
    "data": set(),
    "networks": {"core"},
    "objectives": {"core"},
    "sampling": {"core"},
    "training": {"core", "data"},
    "evaluation": {"core", "networks", "sampling", "data"},
    "pretrained": {"core", "networks"},
    "planning": set(),
    "config": LIBRARY,
    "presets": LIBRARY | {"config"},
    "adapters": LIBRARY | {"config"},
    "autoencoders": LIBRARY | {"config"},
    "build": LIBRARY | {"adapters", "autoencoders", "config"},
    "codecs": LIBRARY | {"config", "models"},
    "originals": LIBRARY | {"config"},
    "editor": LIBRARY | {"config", "sampler"},
    "fitted_grids": LIBRARY | {"config"},
    "inputs": {"data"},
    "outputs": LIBRARY,
    "measurements": {"core", "sampling", "data", "inputs"},
    "restoration": LIBRARY | {"build", "config", "sampler", "settings", "texts", "trained"},
    "families": LIBRARY,
    "singles": LIBRARY,
    "schedulers": LIBRARY | {"config"},
    "pipelines": LIBRARY | {"config", "families", "models", "schedulers"},
    "exports": LIBRARY | {"config", "families", "models", "pipelines", "schedulers"},
    "texts": LIBRARY | {"config"},
    "sampler": LIBRARY | {"autoencoders", "config", "build", "codecs", "texts"},
    "reconstruction": LIBRARY | {"config", "sampler"},
    "previews": LIBRARY | {"config", "sampler", "texts"},
    "settings": LIBRARY | {"config", "names", "sampler", "texts"},
    "names": {"core", "sampling", "config"},
    "models": LIBRARY | {"config"},
    "checkpoints": LIBRARY | {"adapters", "config", "models"},
    "starts": LIBRARY | {"adapters", "build", "checkpoints", "config", "models", "texts"},
    "trained": LIBRARY
    | {"adapters", "checkpoints", "config", "build", "fitted_grids", "names", "sampler", "settings", "texts"},
    "cli": LIBRARY | {"config", "presets"},
    "commands": BUILDERS | {"planning"},
    "__main__": BUILDERS | {"commands"},
}

CORE_NEEDS_ONLY = {"jax", "numpy", "jaxtyping"}
"""Of other people's packages."""

FORBIDDEN = {"tensorflow", "torch", "torchvision"}
"""Never imported, not even inside a function: packages that need them import them themselves."""

LEAVES: dict[str, set[str]] = {
    "tensorflow_datasets": {"data/tfds.py"},
    "safetensors": {"pretrained/safetensors.py"},
    "tokenizers": set(),
    "apache_beam": set(),
    "array_record": set(),
    "libtpu": set(),
    "pydicom": {"data/medical/dicom.py"},
    "nibabel": {"data/medical/nifti.py"},
    "gradio": set(),
}
"""Heavy or optional packages, and the files that may import them at the top; others import them where used."""

MOST_LINES = 320


class Import(NamedTuple):
    line: int
    module: str
    """The full name of what is imported: `from a import b` is `a.b`."""
    at_top: bool
    """Whether it happens on import of the file, and not in a function."""


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a file, absolute: relative ones are resolved from the file's own dotted name."""

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(child.lineno, alias.name, at_top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    kept = parts[: len(parts) - child.level + is_package]
                    base = ".".join([*kept, base] if base else kept)
                yield from (Import(child.lineno, f"{base}.{alias.name}", at_top) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, at_top and not inside)

    return visit(ast.parse(source), True)


def faults(source: str, path: str) -> list[str]:
    """What in this file (`path` is relative to the package) breaks the rules, one line each."""
    parts = Path(path).with_suffix("").parts
    layer, is_package = parts[0], parts[-1] == "__init__"
    name = ".".join(["jaxdiff", *(parts[:-1] if is_package else parts)])
    found = []
    if layer not in MAY_IMPORT:
        found.append(f"{path}: {layer} is not in the table of layers")
    if (lines := source.count("\n")) >= MOST_LINES:
        found.append(f"{path}: {lines} lines, {MOST_LINES} are too many")
    for line, module, at_top in imports(source, name, is_package):
        top, *rest = module.split(".")
        here = f"{path}:{line}: imports {module}"
        if top == "jaxdiff":
            # `import jaxdiff` and its version belong to everyone.
            if rest and rest[0] not in {layer, "__version__"} | MAY_IMPORT.get(layer, set()):
                found.append(f"{here}, which {layer} may not")
        elif top == "flax" and layer != "networks":
            found.append(f"{here}, which only networks may")
        elif top in FORBIDDEN:
            found.append(f"{here}, which is forbidden")
        elif top in LEAVES and at_top and path not in LEAVES[top]:
            found.append(f"{here} at its top, which only {sorted(LEAVES[top])} may")
        elif layer == "core" and not (top in CORE_NEEDS_ONLY or top in sys.stdlib_module_names):
            found.append(f"{here}, which core may not")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_layers(file):
    assert faults(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()) == []


def test_every_layer_is_seen():
    seen = {file.relative_to(ROOT).with_suffix("").parts[0] for file in FILES}
    assert seen >= {"core", "networks", "objectives", "sampling", "data", "training"}


@pytest.mark.parametrize(
    "path, source",
    [
        ("core/paths.py", "from jaxdiff.networks.unet import UNet"),
        ("core/paths.py", "import jaxdiff.data"),
        ("core/paths.py", "import optax"),
        ("core/paths.py", "def f():\n    from jaxdiff import networks"),
        ("core/paths.py", "from ..sampling import ddim"),
        ("core/new/__init__.py", "from ...sampling import ddim"),
        ("core/paths.py", "if TYPE_CHECKING:\n    import jaxdiff.training.state"),
        ("objectives/vdm.py", "from jaxdiff.networks.schedule import LearnedSchedule"),
        ("sampling/ddim.py", "from jaxdiff.objectives.base import Batch"),
        ("data/files.py", "from jaxdiff.core.types import Level"),
        ("training/step.py", "from jaxdiff.objectives.base import Objective"),
        ("networks/unet.py", "from jaxdiff.sampling import ddim"),
        ("evaluation/fid.py", "from jaxdiff.training import state"),
        ("pretrained/dit.py", "from jaxdiff.config import Config"),
        ("config.py", "from jaxdiff.presets import emoji"),
        ("presets/emoji.py", "from jaxdiff.commands import plan"),
        ("__init__.py", "from jaxdiff.core import paths"),
        ("training/step.py", "import flax.linen as nn"),
        ("objectives/vdm.py", "from flax import linen"),
        ("data/tfds.py", "import tensorflow as tf"),
        ("data/tfds.py", "def f():\n    import tensorflow.io"),
        ("networks/unet.py", "class A:\n    def f(self):\n        from torch import nn"),
        ("data/files.py", "import tensorflow_datasets as tfds"),
        ("data/files.py", "try:\n    from pydicom import dcmread\nexcept ImportError:\n    pass"),
        ("commands/demo.py", "class Demo:\n    import gradio"),
        ("helpers/misc.py", ""),
        ("core/paths.py", "\n" * MOST_LINES),
    ],
)
def test_violations_are_found(path, source):
    assert len(faults(source, path)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("core/paths.py", "import math\nimport jax.numpy as jnp\nfrom jaxdiff.core.types import Level"),
        ("core/paths.py", "from . import types\nfrom .types import Level\nfrom ..core import gaussian"),
        ("core/__init__.py", "from . import types\nfrom .types import Level"),
        ("networks/unet.py", "import flax.linen as nn\nfrom jaxdiff.core.types import Cond"),
        ("training/checkpoint.py", "import jaxdiff\nfrom jaxdiff import __version__\nfrom jaxdiff.data import Data"),
        ("data/tfds.py", "import tensorflow_datasets as tfds"),
        ("commands/demo.py", "def main():\n    import gradio\n    from jaxdiff.build import sampler"),
        ("presets/emoji.py", "from jaxdiff.config import Config\nfrom jaxdiff.networks.unet import UNet"),
        ("core/paths.py", "# from jaxdiff.networks import unet\nS = 'import torch'"),
        ("core/paths.py", "\n" * (MOST_LINES - 1)),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert faults(source, path) == []
