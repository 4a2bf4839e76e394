"""The pipeline `spectral-pathways` of transformers: what and where pathways of the backbone beside this file.

Example:
    >>> from transformers import pipeline
    >>> pipe = pipeline(model=repository, trust_remote_code=True)
    >>> pipe("photo.jpg")["segmentation"]

It imports the installed package. `hf_spectral.pipeline(repository)` does not run it, and needs no trust.
"""

try:
    from hf_spectral import SpectralPathwaysPipeline
except ModuleNotFoundError as error:
    if error.name != "hf_spectral":
        raise
    raise ImportError("This pipeline is a part of the package hf-spectral. Run: pip install hf-spectral") from error

__all__ = ["SpectralPathwaysPipeline"]
