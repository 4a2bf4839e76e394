"""The level of the package's logger, `hf_spectral`: that of transformers, unless it is given one of its own.

One rule for all rooms. A warning: something is not as the caller may think, such as an image left out, a check that
could not be made, another model in the place of the one asked for. Information: what is being done. Errors are raised.
"""

from __future__ import annotations

import logging


class _AsLoudAsTransformers(logging.Logger):
    """A logger with the level of `transformers.logging.set_verbosity`, until `setLevel` gives it one of its own."""

    @property
    def level(self) -> int:
        """The level, which loggers below this one read too."""
        return self._own or logging.getLogger("transformers").level

    @level.setter
    def level(self, level: int) -> None:
        self._own = level


def follow_transformers() -> None:
    """Make the logger of the package, before a program has asked for it; one that is there already stays as it is."""
    before = logging.getLoggerClass()
    logging.setLoggerClass(_AsLoudAsTransformers)
    try:
        logger = logging.getLogger("hf_spectral")
    finally:
        logging.setLoggerClass(before)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("[hf_spectral] %(message)s"))
        handler.addFilter(lambda _: not logging.getLogger().handlers)  # Else the program's own would say it again.
        logger.addHandler(handler)
