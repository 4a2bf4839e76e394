"""`python -m hf_spectral.cli`, as `accelerate launch -m hf_spectral.cli` runs it."""

import sys

from hf_spectral.cli import main

sys.exit(main())
