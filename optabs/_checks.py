"""What an argument may be, checked where a transformation is built.

Values are read of Python and NumPy numbers only: a JAX array may be traced, and reading it
would force a transfer or a second compilation. Its shape and dtype may always be read.
"""

import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import reprlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_LARGEST = float(np.finfo(np.float32).max)

Rule = Callable[[Any], str | None]  # a value -> what is wrong with it


def check(rule: Rule, **arguments: Any) -> None:
    """Raises ValueError for the first argument that a rule refuses.

    The message is one sentence: the argument, what was given, and what to pass.
    """
    for name, value in arguments.items():
        problem = rule(value)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")


def within(low: float, high: float, wanted: str) -> Rule:
    """Accepts low <= value < high, and no number that float32 does not reach."""

    def rule(value: Any) -> str | None:
        try:
            number = _number(value)
        except (TypeError, ValueError):
            kind = "" if hasattr(value, "dtype") else f", a {type(value).__name__}"
            return f"is {short(value)}{kind}; pass {wanted}"
        if number is None or (low <= number <= _LARGEST and number < high):
            return None
        beyond = ", more than float32 holds" if _LARGEST < number < high else ""
        return f"is {short(value)}{beyond}; pass {wanted}"

    return rule


def precise(rule: Rule) -> Rule:
    """A rule for numbers that are worthless once they were rounded to 16 bits.

    0.999 is 1 in bfloat16, and 1e-8 is 0 in float16; what was lost cannot be recovered.
    """

    def checked(value: Any) -> str | None:
        dtype = getattr(value, "dtype", None)
        if dtype is None or jnp.promote_types(dtype, jnp.float32) == dtype:
            return rule(value)
        if not jnp.issubdtype(dtype, jnp.floating):
            return rule(value)
        return (
            f"came as {dtype}, too coarse for it; pass a Python number, and under "
            "optax.inject_hyperparams hyperparam_dtype=jnp.float32 (or wrap that in "
            "optabs.full_precision)"
        )

    return checked


def optional(rule: Rule) -> Rule:
    """Accepts None, too."""
    return lambda value: None if value is None else rule(value)


def concrete(rule: Rule) -> Rule:
    """A rule that reads JAX arrays too, for what is only used where nothing is traced."""
    return lambda value: rule(value.item() if isinstance(value, jax.Array) else value)


def _rate(value: Any) -> str | None:
    wanted = "a finite number that is 0 or more, or a schedule (step -> rate)"
    return None if callable(value) else within(0.0, math.inf, wanted)(value)


def _whole(value: Any) -> str | None:
    wanted = "a whole number from 1 to 2**31 - 1"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return None if 1 <= value < 2**31 else f"is {short(value)}; pass {wanted}"
    return f"is {short(value)}, a {type(value).__name__}; pass {wanted}"


def _mask(value: Any) -> str | None:
    # inject_hyperparams replaces a callable mask by what it returns for a step
    # number, and optax.masked would then silently broadcast that bool.
    if isinstance(value, bool | np.bool_ | int | float | str | jax.Array | np.ndarray):
        return (
            f"is {short(value)}; pass None, a pytree of bools shaped like the parameters, or "
            "a function (params -> such a pytree), named in static_args under "
            "inject_hyperparams"
        )
    return None


def _float32_decay(value: Any) -> str | None:
    if (fault := DECAY(value)) or not isinstance(value, float) or np.float32(value) < 1:
        return fault
    return f"is {float(value)!r}, which is 1 in float32; pass a smaller one"


SHARE = within(0.0, math.nextafter(1.0, 2.0), "a number in [0, 1]")
BELOW_ONE = within(0.0, 1.0, "a number in [0, 1)")
NONNEGATIVE = within(0.0, math.inf, "a finite number that is 0 or more")
POSITIVE = within(math.ulp(0.0), math.inf, "a finite number above 0")

DECAY = precise(BELOW_ONE)
EPS = precise(NONNEGATIVE)

RATE: Rule = _rate
WHOLE: Rule = _whole
DECAY32: Rule = _float32_decay  # of what is float32 whatever the parameters are
MASK: Rule = _mask


def as_transformation(name: str, value: Any) -> optax.GradientTransformation:
    """The gradient transformation that was given; raises ValueError for anything else."""
    if isinstance(value, optax.GradientTransformation):
        return value
    if isinstance(value, optax.MultiSteps):
        return value.gradient_transformation()
    wanted = "a gradient transformation, such as optabs.adam(1e-3)"
    what = short(value)
    if isinstance(value, type):
        what = f"the class {cut(value.__name__)}"
    elif inspect.isfunction(value):
        what, wanted = f"the function {cut(value.__name__)}", "what it returns"
        if "learning_rate" in inspect.signature(value).parameters:
            wanted += f", such as {cut(value.__name__)}(1e-3)"
    raise ValueError(f"{name} is {what}; pass {wanted}.")


def check_alike(maker: str, made: Any, like: Any, wanted: str) -> None:
    """Raises ValueError where a tree of arrays is not like the one it was made from.

    Args:
      maker: what made it, as the message names it.
      made: the tree.
      like: what it should be like.
      wanted: what to do, the end of the message.
    """
    structure: Any = jax.tree.structure(like)
    if (given := jax.tree.structure(made)) != structure:
        old_text, new_text = where_they_differ(structure, given)
        raise ValueError(f"{maker} turned {old_text} into {new_text}; {wanted}.")
    for new, old in zip(jax.tree.leaves(made), jax.tree.leaves(like), strict=True):
        was, now = (
            f"{jnp.result_type(leaf).name}{list(jnp.shape(leaf))}" for leaf in (old, new)
        )
        if was != now:
            raise ValueError(f"{maker} turned {was} into {now}; {wanted}.")


def check_shapes(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises ValueError where two trees that go together have other structures or shapes."""
    given: Any = jax.tree.structure(tree)
    if given != jax.tree.structure(like):
        raise ValueError(
            f"{name} are {short(given)}, another tree than {like_name}; pass gradients of the "
            "parameters that init was given."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            where = cut(jax.tree_util.keystr(path))
            raise ValueError(
                f"{name}{where} have shape {jnp.shape(leaf)} where {like_name} have "
                f"{jnp.shape(other)}; pass gradients of the parameters that init was given."
            )


def check_kind(state: Any, kind: type) -> None:
    """Raises ValueError where a transformation is given the state of another one."""
    if not isinstance(state, kind):
        raise ValueError(
            f"state is {type(state).__name__} in place of {kind.__name__}; pass what init, or "
            "the last update, of this transformation returned."
        )


def where_they_differ(structure: Any, given: Any) -> list[str]:
    """Two structures as text, of long ones no more than is needed to see the difference."""
    texts = [" ".join(str(each).split()) for each in (structure, given)]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    at = len(list(same))
    return [_around(text, at) for text in texts]


def _around(text: str, at: int) -> str:
    if len(text) <= _WIDTH:
        return text
    head = "PyTreeDef("
    start = at - _WIDTH // 2
    if start <= len(head):
        return f"{text[:_WIDTH]}..."
    return f"{head}...{text[start : start + _WIDTH - len(head)]}..."


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


def short(value: Any) -> str:
    """A value as a message shows it: on one line, and never long."""
    if isinstance(value, jax.Array | np.ndarray) and value.ndim:
        kind = "float0" if value.dtype == jax.dtypes.float0 else value.dtype
        return f"an array {kind}{list(value.shape)}"
    return cut(_repr().repr(value))


def cut(text: str) -> str:
    """A text as a message shows it: on one line, and never long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


# A message of up to 300 characters has room for two or three values.
_LONGEST = 80
_WIDTH = 65  # of each of two structures in one message


@functools.cache
def _repr() -> reprlib.Repr:
    made = reprlib.Repr()
    made.maxstring = made.maxother = _LONGEST
    return made


def _number(value: Any) -> float | None:
    """`value` as a float where it can be read here, else None."""
    if isinstance(value, bool | np.bool_ | str) or getattr(value, "shape", ()) != ():
        raise TypeError
    if isinstance(value, jax.Array) or hasattr(value, "aval"):
        if jnp.iscomplexobj(value):
            raise TypeError
        return None
    return float(value)
