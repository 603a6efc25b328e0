"""No module bears a public function's name: where a package has both, one hides the other."""

import pkgutil
from types import ModuleType
from typing import Any

import optabs


def public_functions() -> set[str]:
    spaces: list[Any] = [optabs, optabs.features, optabs.genetics, optabs.losses]
    return {
        name
        for space in spaces
        for name, value in vars(space).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, ModuleType)
    }


def modules() -> set[str]:
    found = pkgutil.walk_packages(optabs.__path__, "optabs.")
    return {module.name.rpartition(".")[2] for module in found}


def test_no_module_bears_a_public_functions_name() -> None:
    names = public_functions()
    assert {"adam", "crossover", "mse", "batch_mean"} <= names
    assert {"adam_family", "features", "codecs"} <= modules()
    assert modules() & names == set()
