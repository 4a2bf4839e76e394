"""Publishing to the Hugging Face Hub: bases, analyzed datasets, results, and a Space that shows them."""

from hf_spectral.hub.cards import CardDetails
from hf_spectral.hub.publishing import push_to_hub
from hf_spectral.hub.space import push_space

__all__ = ["CardDetails", "push_space", "push_to_hub"]
