"""From the text of `--data.source` to a source of pictures: the one place that knows every kind of set."""

from collections.abc import Callable
from dataclasses import dataclass

from etils import epath

from jaxdiff.data.arrays import FASHION_MNIST, npz_splits, open_emoji, open_fashion_mnist, open_npz
from jaxdiff.data.classes import OfClasses, of_classes
from jaxdiff.data.config import Data, Plane
from jaxdiff.data.files import files_splits, open_files
from jaxdiff.data.medmnist import medmnist_splits, open_medmnist
from jaxdiff.data.records import Header, RecordSource, check_latents, open_records, read_header
from jaxdiff.data.source import Source, Subset, partition
from jaxdiff.data.subject import Beside, Told
from jaxdiff.data.tfds import open_tfds, tfds_splits
from jaxdiff.data.units import Window, window_of

EIGHT_BITS = ("emoji", "fashion_mnist", "medmnist", "records")
"""Kinds of sets whose pictures have 8 bits, or are latents."""


@dataclass(frozen=True)
class Opener:
    """A set that has been named but not read: the splits it has, and how to open one."""

    splits: Callable[[], tuple[str, ...]]
    open: Callable[[str], Source]


def open_source(data: Data) -> Source:
    """The pictures to train on: the split `data.split` of `data.source`, without those held out.

    Raises ValueError or FileNotFoundError, one line that names the flag and the allowed values.
    """
    source = opened(data, data.split)
    if data.holdout:
        train, _ = partition(len(source), data.holdout)
        source = Subset(source, train)
    if not data.prior:
        return source
    prior = find(data.prior).open("train")
    if not len(source) or not len(prior):
        raise ValueError(f"no images are left of {source.name} or {prior.name} (--data.source, --data.prior)")
    return Beside(source, Told(prior, data.prior_caption) if data.prior_caption else prior, data.prior_weight)


def open_validation(data: Data) -> Source | None:
    """The pictures to validate on, none of which `open_source` returns; None where the set has no such part.

    With `data.holdout` > 0 the pictures held out of `data.split` (None if the fraction comes to no picture),
    else the first of the set's own splits `validation`, `val`, `valid` and `test` that is not trained on.
    """
    opener = find_of(data)
    if data.holdout > 0:
        source = opened(data, data.split)
        _, held = partition(len(source), data.holdout)
        return Subset(source, held) if len(held) else None
    splits = opener.splits()
    own = [s for s in ("validation", "val", "valid", "test") if s in splits and s not in data.split]
    return opened(data, own[0]) if own else None


def opened(data: Data, split: str) -> Source:
    """A whole split. Raises ValueError where `data` asks for what the set cannot give."""
    source = find_of(data).open(split)
    if isinstance(source, RecordSource):
        check_latents(data, source)
    if data.classes:
        source = of_classes(source, data.classes)
    return Told(source, data.caption) if data.caption else source


def has_features(source: Source) -> bool:
    """Whether a text encoder has read the captions already."""
    if isinstance(source, Subset | OfClasses):
        return has_features(source.source)
    if isinstance(source, Beside):
        return has_features(source.first) and has_features(source.second)
    return isinstance(source, RecordSource) and any(a.name == "text_tokens" for a in source.header.arrays)


def header_of(data: Data) -> Header | None:
    """What a precomputed set says of itself; None of any other."""
    kind, _, rest = data.source.partition(":")
    return read_header(epath.Path(rest).expanduser()) if kind == "records" and rest else None


def find_of(data: Data) -> Opener:
    """The set that `data` names, read as it says."""
    return find(data.source, window_of(data.window), data.plane)


def find(spec: str, window: Window | None = None, plane: Plane = "axial") -> Opener:
    """The set that `spec`, the text of `--data.source`, names; `window` and `plane` as in `Data`."""
    kind, _, rest = spec.partition(":")
    if window is not None and (kind in EIGHT_BITS or spec.lower().endswith(".npz")):
        raise ValueError(f"--data.window is for images of more than 8 bits, and those of {spec} have 8")
    if kind == "emoji":
        return Opener(lambda: ("train",), lambda split: open_emoji(rest or None, split))
    if kind == "fashion_mnist":
        folder = epath.Path(rest or FASHION_MNIST).expanduser()
        return Opener(lambda: ("train", "test"), lambda split: open_fashion_mnist(folder, split))
    if kind == "medmnist" and rest:
        return Opener(lambda: medmnist_splits(rest), lambda split: open_medmnist(rest, split))
    if kind == "tfds" and rest:
        return Opener(lambda: tfds_splits(rest), lambda split: open_tfds(rest, split, window))
    if kind == "records" and rest:
        folder = epath.Path(rest).expanduser()
        return Opener(lambda: ("train",), lambda split: open_records(folder, split))
    if kind in ("dicom", "nifti") and rest:
        return find_scans(kind, epath.Path(rest).expanduser(), window, plane)
    path = epath.Path(spec).expanduser()
    if path.suffix.lower() == ".npz":
        return Opener(lambda: npz_splits(path), lambda split: open_npz(path, split))
    if path.is_dir() or path.suffix.lower() == ".zip":
        return Opener(lambda: files_splits(path), lambda split: open_files(path, split, window))
    if path.exists():
        raise ValueError(f"--data.source {spec} must be a folder or .zip of images, or an .npz")
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"--data.source {spec} does not exist")
    raise ValueError(
        f"--data.source {spec!r} is unknown, allowed are emoji, emoji:CATEGORY, fashion_mnist[:DIR],"
        " medmnist:FILE, tfds:NAME[:DIR], a folder or .zip of images, an .npz, dicom:PLACE, nifti:PLACE, records:DIR"
    )


def find_scans(kind: str, path: epath.Path, window: Window | None, plane: Plane) -> Opener:
    """DICOM images or NIfTI volumes. Raises: ValueError where the packages that read them are missing."""
    if not path.exists():
        raise FileNotFoundError(f"--data.source {kind}:{path} does not exist")
    try:
        from jaxdiff.data.medical import sources as scans
    except ImportError as error:
        raise ValueError(
            f"--data.source {kind}:{path} needs a package that is missing: pip install 'jaxdiff[medical]' ({error})"
        ) from error
    if kind == "dicom":
        return Opener(lambda: scans.scan_splits(path), lambda split: scans.open_dicom(path, split, window))
    return Opener(lambda: scans.scan_splits(path), lambda split: scans.open_nifti(path, split, plane, window))
