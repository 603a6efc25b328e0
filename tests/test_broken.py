"""Every shared check rejects the optimizer that was broken for it."""

import pytest
from broken import CONTROLS
from checks import CHECKS
from trees import declared


@pytest.mark.parametrize("name", CONTROLS)
def test_check_rejects_its_control(name: str) -> None:
    control = CONTROLS[name]
    assert CHECKS[name].applies(control.case)
    with declared(control.case), pytest.raises(control.raises):
        CHECKS[name].run(control.case)


def test_every_check_has_a_control() -> None:
    assert set(CONTROLS) == set(CHECKS)
