"""One deliberately broken optimizer per check: the proof that the check can fail.

Each is momentum with one fault; momentum without a fault has a row, and passes. For a
counterpart, which is for rows that declare a weakness, the sound optimizer is the fault:
its row declares what is not so.
"""

import importlib
import pkgutil

from broken.registry import CONTROLS as CONTROLS

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
