"""Which checks there are, and which rows each is for."""

from collections.abc import Callable
from typing import NamedTuple

from cases import Case


class Check(NamedTuple):
    run: Callable[[Case], None]
    where: str | None  # the trait that a row needs
    replaces: str | None  # the check whose counterpart this is

    def applies(self, case: Case) -> bool:
        if self.replaces is not None:
            return not CHECKS[self.replaces].applies(case)
        return self.where is None or getattr(case, self.where)


CHECKS: dict[str, Check] = {}


def check(
    *, where: str | None = None, instead_of: Callable[[Case], None] | None = None
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Registers a function; `instead_of` takes the rows that the other one leaves out."""

    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        replaces = None if instead_of is None else instead_of.__name__
        CHECKS[run.__name__] = Check(run, where, replaces)
        return run

    return register
