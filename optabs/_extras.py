"""Imports packages of an extra, where they are needed."""

import importlib
import importlib.util
import sys
from typing import Any

from optabs._checks import cut


def require(module: str, extra: str, needed_for: str) -> Any:
    """The package; raises ImportError with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{needed_for} needs the package {module!r} ({cut(str(error))}); call "
            f'`pip install "optabs[{extra}]"`.'
        ) from error


def can_show_progress() -> bool:
    """Whether there is a terminal for a bar, and tqdm to draw it."""
    return sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
