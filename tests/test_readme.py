"""Examples of README and of a page run, each as one program; README names every optimizer."""

import pathlib
import re
from typing import Any

import pytest
from checks import CHECKS

import optabs

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/optimizers/dao_e.md"])
def test_python_examples_run(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)


def test_every_public_name_is_in_the_readme() -> None:
    public = {name for name, value in vars(optabs).items() if callable(value)}
    assert {name for name in public if f"`{name}" not in README} == set()


def test_the_number_of_checks_is_in_the_readme() -> None:
    assert f"{len(CHECKS)} checks" in README
