"""Image sets by name or path, and the Grain pipeline that turns one into batches."""

from jaxdiff.data.config import Data
from jaxdiff.data.pipeline import Batch, Batches, batches, validation_batches
from jaxdiff.data.records import Latents
from jaxdiff.data.source import Example, Source
from jaxdiff.data.sources import header_of, open_source, open_validation

__all__ = [
    "Batch",
    "Batches",
    "Data",
    "Example",
    "Latents",
    "Source",
    "batches",
    "header_of",
    "open_source",
    "open_validation",
    "validation_batches",
]
