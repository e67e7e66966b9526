"""The 2D sets of MedMNIST: one .npz each, with train, val and test, 28, 64, 128 or 224 pixels a side, grey or RGB.

`medmnist:FILE` names the file, or a set by its name alone, `medmnist:pneumoniamnist` or `medmnist:pathmnist_64`, which
is looked for here and where the package medmnist puts its downloads.

Source: Yang et al., "MedMNIST v2", Scientific Data 10, 41 (2023): the names of the classes.
"""

from etils import epath

from jaxdiff.data.arrays import npz_arrays, npz_splits, open_npz
from jaxdiff.data.source import ArraySource

HOME = "~/.medmnist"
"""Where the package medmnist puts its downloads."""

ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
    "liver", "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip

CLASSES = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
        "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast", "immature granulocytes",
        "lymphocyte", "monocyte", "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments",
        "Thick Ascending Limb",
    ),
    "organamnist": ORGANS,
    "organcmnist": ORGANS,
    "organsmnist": ORGANS,
}  # fmt: skip
"""Names of the classes in order; sets that are not here have numbers for names (retinamnist: grades 0 to 4)."""


def find_medmnist(spec: str) -> epath.Path:
    """The file that `medmnist:SPEC` names. Raises: FileNotFoundError, saying where it was looked for."""
    path = epath.Path(spec).expanduser()
    name = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
    places = [name] if len(path.parts) > 1 else [name, epath.Path(HOME).expanduser() / name]
    for place in places:
        if place.is_file():
            return place
    where = " and ".join(map(str, places))
    raise FileNotFoundError(
        f"--data.source medmnist:{spec} is missing ({where}): download {name.name} of MedMNIST, and name the file with"
        " --data.source medmnist:FILE"
    )


def medmnist_splits(spec: str) -> tuple[str, ...]:
    """The splits of the file: train, val, test."""
    return npz_splits(find_medmnist(spec))


def open_medmnist(spec: str, split: str) -> ArraySource:
    """A split of a file of MedMNIST, its classes by their names.

    Where a picture has several findings at once (chestmnist) the set has no classes.
    Raises: FileNotFoundError or ValueError, one line with the file's name.
    """
    path = find_medmnist(spec)
    if "train_images" not in npz_arrays(path):
        raise ValueError(f"{path} has no array train_images, so is no file of MedMNIST (--data.source {path})")
    names = CLASSES.get(path.stem.split("_")[0].lower(), ())
    return open_npz(path, split, names, several=True)
