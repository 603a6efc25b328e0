"""No module bears a public function's name: where a package has both, one hides the other."""

import importlib
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
    return {module.name for module in found}


def hidden(modules: set[str]) -> set[str]:
    """Those whose package has a public function, or is about to get one, of their name."""
    names = public_functions()
    top = {f"optabs.{name}" for name in names}
    inner = {
        name
        for name in modules
        if callable(
            vars(importlib.import_module(name.rpartition(".")[0])).get(name.rpartition(".")[2])
        )
    }
    return modules & top | inner


def test_no_module_bears_a_public_functions_name() -> None:
    names = public_functions()
    assert {"adam", "crossover", "mse", "batch_mean"} <= names
    assert {"optabs.optimizers.adam_family", "optabs.storage.codecs"} <= modules()
    assert hidden(modules()) == set()
    # One file may have the name of the function that it is about, as no package has both.
    bare = {name.rpartition(".")[2] for name in modules()}
    assert bare & names <= {"dao_e"}


def test_a_module_that_would_be_hidden_is_found() -> None:
    """A control."""
    assert hidden({"optabs.adam", "optabs.storage.codecs"}) == {"optabs.adam"}
