"""A pipeline of diffusers: what and where pathways of the denoiser beside this file, or of any repository.

Example:
    >>> from diffusers import DiffusionPipeline
    >>> pipe = DiffusionPipeline.from_pretrained(repository_with_this_file, trust_remote_code=True)
    >>> pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=this_folder, trust_remote_code=True)
    >>> pipe = DiffusionPipeline.from_pipe(loaded, custom_pipeline=this_folder, trust_remote_code=True)
    >>> pipe("photo.jpg", pathway="where").segmentation

It imports the installed package: pip install 'hf-spectral[diffusers]'. diffusers wants one pipeline class in this file.
"""

from hf_spectral.pipelines.diffusers import SpectralDiffusionPipeline

__all__ = ["SpectralDiffusionPipeline"]
