"""Run the command line by `python -m hf_spectral`, or on several processes by `accelerate launch -m hf_spectral`."""

import sys

from hf_spectral.cli import main

sys.exit(main())
