"""Publishing to the Hugging Face Hub: bases, analyzed datasets, results, pipelines, and a Space that shows them."""

from hf_spectral.hub.cards import CardDetails, pipeline_card
from hf_spectral.hub.publishing import push_to_hub
from hf_spectral.hub.space import push_space

__all__ = ["CardDetails", "pipeline_card", "push_space", "push_to_hub"]
