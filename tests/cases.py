"""One row per public optimizer: how to make it, what suits it, and what it declares.

A trait is a promise: each check that needs one names it, and has a counterpart for the
rows without it. A new optimizer needs a row and nothing else.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optabs
from optabs.mixture.experts import DEFAULT


def with_compiled_update(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(optimizer.init, jax.jit(optimizer.update))


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    name: str
    factory: Callable[..., optax.GradientTransformation]  # (learning_rate, **numbers)
    rate: float  # arrives on the round targets
    steep_rate: float  # arrives on Rosenbrock's valley
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    moments: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Fields of the state that are shaped like the parameters: name -> how often."""
    covers: tuple[str, ...] = ()
    """Public names that this row stands for."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keyword arguments of every update."""

    element_wise: bool = True  # an entry's update depends on that entry alone
    apart: bool = True  # a leaf's update does not depend on the other leaves
    complex_ok: bool = True  # accepts complex parameters
    without_params: bool = True  # update works with params=None
    without_value: bool = True  # update works without value=
    full_width: bool = True  # state is kept in promote_types(dtype, float32)
    passes_nan: bool = True  # a NaN gradient reaches the updates
    error: float = 0.0  # quantised: what rounding the state may change, relative
    dtype: str = "float32"  # of parameters where a check asks for float32, or for none
    keeps_dtype: bool = True  # updates have the gradient's dtype, from parameters of any
    settings_of: str = ""  # the row that has the same code, under other settings
    large: bool = False  # hundreds of operations, which outside of jit are compiled one by one

    def make(self, learning_rate: Any = None, **numbers: Any) -> Any:
        """A large row's update is compiled, and once for all checks."""
        if not self.large:
            return self.make_eager(learning_rate, **numbers)
        try:
            return self._compiled(learning_rate, **numbers)
        except TypeError:  # an array or a tracer, which is no key of a cache
            return with_compiled_update(self.make_eager(learning_rate, **numbers))

    def make_eager(self, learning_rate: Any = None, **numbers: Any) -> Any:
        rate = self.rate if learning_rate is None else learning_rate
        return self.factory(rate, **{**self.options, **numbers})

    @functools.lru_cache(None, typed=True)  # noqa: B019  (rows live as long as the module)
    def _compiled(self, learning_rate: Any, **numbers: Any) -> Any:
        return with_compiled_update(self.make_eager(learning_rate, **numbers))

    def emitted(self, dtype: Any) -> Any:
        """The dtype of the updates for gradients of a dtype."""
        widens = not self.keeps_dtype and dtype == jnp.bfloat16
        return jnp.dtype(jnp.float32 if widens else dtype)

    @property
    def code(self) -> str:
        """The row that stands for the code of this one."""
        return self.settings_of or self.name

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.factory).parameters

    @property
    def numbers(self) -> dict[str, float]:
        """The numeric hyperparameters beside the rate, which may be traced and injected."""
        given = {name: p.default for name, p in self.parameters.items()} | dict(self.options)
        return {
            name: value
            for name, value in given.items()
            if name != "learning_rate" and isinstance(value, float)
        }

    def __str__(self) -> str:
        return self.name


_MU = {"mu": 1}
_NU = {"nu": 1}
_ADAM = {"mu": 1, "nu": 1}


def _named(
    name: str, rate: float, steep_rate: float, parts: tuple[str, ...] = (), **fields: Any
) -> Case:
    """A row that stands for its own name, and for parts that no other chain uses."""
    factory = getattr(optabs, name)
    return Case(name, factory, rate, steep_rate, covers=(name, *parts), **fields)


NAMED = [
    _named("sgd", 0.1, 1e-3),
    _named("momentum", 0.3, 1e-2, moments=_MU),
    _named("nag", 0.3, 3e-3, moments=_MU),
    _named("adagrad", 1.0, 0.1, ("root_sum_squares",), moments=_NU),
    _named("rmsprop", 0.03, 3e-4, moments=_NU),
    _named("adadelta", 1.0, 3e-3, moments={"nu": 2}),
    _named("adam", 0.1, 1e-3, moments=_ADAM),
    _named("adamw", 0.01, 1e-3, moments=_ADAM, without_params=False),
    _named("nadam", 0.1, 1e-3, moments=_ADAM),
    # Steps shrink like 1/t: a rate that would be far too large elsewhere.
    _named("adagrad_abs", 10.0, 1.0, ("sum_abs",), moments=_NU),
    _named("rmsprop_abs", 0.03, 3e-4, moments=_NU),
    # Steps begin near eps, so the rate makes up for the default's 1e-6.
    _named("adadelta_abs", 3.0, 0.1, moments={"nu": 2}),
    _named("adam_abs", 0.1, 1e-3, moments=_ADAM),
    _named("adamw_abs", 0.03, 1e-3, moments=_ADAM, without_params=False),
    _named("nadam_abs", 0.1, 1e-3, moments=_ADAM),
]


OPTIONS = [
    Case(
        "adam_steady", optabs.adam, 0.3, 1e-2, options={"steady": True}, moments=_ADAM,
        covers=("rising_rms",),
    ),
    Case(
        "adam_abs_steady", optabs.adam_abs, 0.3, 1e-2, options={"steady": True}, moments=_ADAM,
        covers=("rising_abs",),
    ),
    Case(
        "adam_abs_bounded", optabs.adam_abs, 0.1, 1e-3, options={"max_ratio": 1.0},
        moments=_ADAM, complex_ok=False,
    ),
    Case(
        "rmsprop_abs_bounded", optabs.rmsprop_abs, 0.3, 1e-3,
        options={"steady": True, "max_ratio": 1.0}, moments=_NU, complex_ok=False,
    ),
    Case(
        "adamw_abs_masked", optabs.adamw_abs, 0.03, 1e-3,
        options={"mask": lambda params: jax.tree.map(lambda _: True, params)}, moments=_ADAM,
        without_params=False,
    ),
    Case(
        "rmsprop_corrected", optabs.rmsprop, 0.03, 3e-4, options={"bias_correction": True},
        moments=_NU,
    ),
]  # fmt: skip


# The parts, each as the direction of a descent. sgd is the last link because it checks the
# rate, which optax.scale_by_learning_rate does not; full_precision rounds once.


def _descent(*parts: Any, learning_rate: Any) -> optax.GradientTransformationExtraArgs:
    return optabs.full_precision(optax.chain(*parts, optabs.sgd(learning_rate)))


def _ema(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return _descent(optabs.ema(decay, bias_correction=True), learning_rate=learning_rate)


def _nesterov(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return _descent(optabs.nesterov(decay), learning_rate=learning_rate)


def _mean_ratio(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    ratio = optabs.scale_by_ratio(optabs.ema(decay), optabs.mean_abs(decay), eps=eps)
    return _descent(ratio, learning_rate=learning_rate)


def _peak_ratio(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, eps_root: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
    size = optax.chain(optabs.rms(decay, eps_root=eps_root), optabs.running_max())
    ratio = optabs.scale_by_ratio(optabs.ema(decay), size)
    return _descent(ratio, learning_rate=learning_rate)


def _corrected(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, eps: float = 1e-3
) -> optax.GradientTransformationExtraArgs:
    ratio = optabs.scale_by_ratio(optax.identity(), optabs.mean_abs(decay))
    unit = optabs.unit_correction(decay, squares=False, eps=eps)
    return _descent(ratio, unit, learning_rate=learning_rate)


def _widened(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    return _descent(optax.ema(0.9, debias=False), learning_rate=learning_rate)


PARTS = [
    Case("ema", _ema, 0.3, 1e-2, moments=_MU, covers=("ema",)),
    Case("nesterov", _nesterov, 0.3, 3e-3, moments=_MU, covers=("nesterov",)),
    Case(
        "mean_ratio", _mean_ratio, 0.01, 1e-3, moments=_ADAM,
        covers=("scale_by_ratio", "mean_abs"),
    ),
    Case(
        "peak_ratio", _peak_ratio, 0.3, 1e-2, moments=_ADAM | {"nu_max": 1},
        covers=("rms", "running_max"),
    ),
    Case(
        "unit_corrected", _corrected, 0.3, 1e-4, moments={"nu": 2},
        covers=("unit_correction",),
    ),
    Case(
        "full_precision", _widened, 0.3, 1e-2, moments={"ema": 1}, covers=("full_precision",),
    ),
]  # fmt: skip

# DAO-E, its controller's numbers as arguments of their own.


def _experts(eps_root: float) -> dict[str, Any]:
    """The default ones, whose roots may be made differentiable at zero."""
    rooted = {
        name: functools.partial(DEFAULT[name], eps_root=eps_root)
        for name in ("adam", "rmsprop")
    }
    return {**DEFAULT, **rooted}


def _dao_e(
    learning_rate: optax.ScalarOrSchedule,
    eps_root: float = 0.0,
    cap: float = 0.05,
    floor: float = 0.01,
    rate: float = 0.15,
    decay: float = 0.003,
    gamma: float = 0.998,
    multiplier_rate: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    controller = optabs.Controller(
        cap=cap,
        floor=floor,
        rate=rate,
        decay=decay,
        gamma=gamma,
        multiplier_rate=multiplier_rate,
    )
    return optabs.dao_e(learning_rate, _experts(eps_root), controller=controller)


def _dao_e_paper(
    learning_rate: optax.ScalarOrSchedule,
    eps_root: float = 0.0,
    rate: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
    controller = optabs.Controller.paper()._replace(rate=rate)
    experts = _experts(eps_root)
    return optabs.dao_e(
        learning_rate,
        {name: experts[name] for name in ("sgd", "adam")},
        controller=controller,
        features=optabs.features.ALL,
        previous="bfloat16",
    )


_MIXTURE: Mapping[str, Any] = {
    "element_wise": False,
    "apart": False,
    "without_params": False,
    "full_width": False,
    "passes_nan": False,
    "large": True,
    "covers": ("dao_e",),
}

_STEPS = {"step": 1, "step_trace": 1}


def _steered(
    learning_rate: optax.ScalarOrSchedule,
    eps_root: float = 0.0,
    cap: float = 0.05,
    multiplier_rate: float = 1.0,
    gamma: float = 0.998,
) -> optax.GradientTransformationExtraArgs:
    return optabs.steered(
        optabs.adam(learning_rate, eps_root=eps_root),
        cap=cap,
        multiplier_rate=multiplier_rate,
        gamma=gamma,
    )


MIXTURES = [
    Case(
        "dao_e", _dao_e, 0.03, 1e-3, moments={"mu": 2, "nu": 2, "trace": 4, **_STEPS},
        **_MIXTURE,
    ),
    Case(
        "dao_e_paper", _dao_e_paper, 0.03, 1e-3, settings_of="dao_e",
        moments={"mu": 1, "nu": 1, "trace": 2}, **_MIXTURE,
    ),
]  # fmt: skip

MIXTURES.append(
    Case(
        "steered",
        _steered,
        0.03,
        1e-3,
        moments={"mu": 1, "nu": 1, **_STEPS},
        **{**_MIXTURE, "covers": ("steered",)},
    )
)

# Narrow states, of leaves as small as those of the checks.


def _narrow(
    learning_rate: optax.ScalarOrSchedule,
    codecs: Mapping[str, str] | None = None,
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    inner = optabs.adam_abs(learning_rate, eps=eps)
    return optabs.narrow_state(inner, codecs, min_size=1)


def _quantised(
    name: str, error: float, codecs: Mapping[str, str] | None = None, settings_of: str = ""
) -> Case:
    return Case(
        name,
        _narrow,
        0.1,
        1e-3,
        options={"codecs": codecs},
        moments=_ADAM,
        full_width=False,
        large=True,
        settings_of=settings_of,
        error=error,
        covers=("narrow_state",),
    )


NARROW = [
    _quantised("narrow_8", 0.25),  # the first codes of a row have steps of half an octave
    _quantised("narrow_bfloat16", 0.03, {"mu": "bfloat16", "nu": "bfloat16"}, "narrow_8"),
]

# Parameters in bfloat16, with 8 bits in the state.


def _bfloat16_params(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    return optabs.narrow_params(optabs.adam(learning_rate, b1, b2, eps, eps_root))


COMPRESSED = [
    Case(
        "bfloat16_params", _bfloat16_params, 0.1, 1e-3, moments={"bits": 1, **_ADAM},
        without_params=False, dtype="bfloat16", keeps_dtype=False, error=0.1,
        covers=("narrow_params",),
    ),
]  # fmt: skip

CASES = NAMED + OPTIONS + PARTS + MIXTURES + NARROW + COMPRESSED
