"""Which checks there are, which rows each is for, and in which variants it runs."""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from cases import CASES, Case

T = TypeVar("T")


def _one(choices: Sequence[T], of: str) -> T:
    return choices[zlib.crc32(of.encode()) % len(choices)]


class Check(NamedTuple):
    function: Callable[..., None]  # (case), or (case, variant)
    where: str | None  # the trait that a row needs
    replaces: str | None  # the check whose counterpart this is
    variants: tuple[str, ...]

    def run(self, case: Case, variant: str | None = None) -> None:
        """In one variant, or in all that the check has."""
        if not self.variants:
            self.function(case)
        for each in self.variants if variant is None else [variant]:
            self.function(case, each)

    def is_quick(self, case: Case, variant: str | None) -> bool:
        """whether a quick run has it: one variant, and one of a row's settings, by hash."""
        name = self.function.__name__
        settings = [each.name for each in CASES if each.code == case.code]
        variants = self.variants or (None,)
        chosen = _one(settings, name), _one(variants, f"{name}-{case}")
        return (case.name, variant) == chosen

    def applies(self, case: Case) -> bool:
        if self.replaces is not None:
            return not CHECKS[self.replaces].applies(case)
        return self.where is None or getattr(case, self.where)


CHECKS: dict[str, Check] = {}


def check(
    *,
    where: str | None = None,
    instead_of: Callable[..., None] | None = None,
    variants: tuple[str, ...] = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a function; `instead_of` takes the rows that the other one leaves out.

    With `variants`, as of a dtype, the function takes one of them as its second argument.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        replaces = None if instead_of is None else instead_of.__name__
        CHECKS[function.__name__] = Check(function, where, replaces, variants)
        return function

    return register
