"""Which checks there are, which rows each is for, and in which dtypes it runs."""

import zlib
from collections.abc import Callable
from typing import NamedTuple

from cases import Case


class Check(NamedTuple):
    function: Callable[..., None]  # (case), or (case, dtype)
    where: str | None  # the trait that a row needs
    replaces: str | None  # the check whose counterpart this is
    dtypes: tuple[str, ...]

    def run(self, case: Case, dtype: str | None = None) -> None:
        """In one dtype, or in all that the check has."""
        if not self.dtypes:
            self.function(case)
        for each in self.dtypes if dtype is None else [dtype]:
            self.function(case, each)

    def quick_dtype(self, case: Case) -> str:
        """The one of `dtypes` in which a quick run has this row: each has some rows."""
        pair = f"{self.function.__name__}-{case}".encode()
        return self.dtypes[zlib.crc32(pair) % len(self.dtypes)]

    def applies(self, case: Case) -> bool:
        if self.replaces is not None:
            return not CHECKS[self.replaces].applies(case)
        return self.where is None or getattr(case, self.where)


CHECKS: dict[str, Check] = {}


def check(
    *,
    where: str | None = None,
    instead_of: Callable[..., None] | None = None,
    dtypes: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function; `instead_of` takes the rows that the other one leaves out.

    With `dtypes` the function takes one of them as its second argument.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        replaces = None if instead_of is None else instead_of.__name__
        CHECKS[function.__name__] = Check(function, where, replaces, dtypes)
        return function

    return register
