"""The shared checks, by idea: every module here adds its own to CHECKS."""

import importlib
import pkgutil

from checks.registry import CHECKS as CHECKS

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
