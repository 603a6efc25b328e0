"""Composable gradient transformations for JAX: optimizers as chains of parts."""

import sys as _sys

# The parts: numerators
from optabs.moments import ema as ema, nesterov as nesterov

# The parts: denominators
from optabs.sizes import (
    mean_abs as mean_abs,
    rising_abs as rising_abs,
    rising_rms as rising_rms,
    rms as rms,
    root_sum_squares as root_sum_squares,
    running_max as running_max,
    sum_abs as sum_abs,
)

# One over the other
from optabs.ratio import scale_by_ratio as scale_by_ratio, unit_correction as unit_correction
from optabs._numerics import full_precision as full_precision

# The named optimizers
from optabs.optimizers.gradient_descent import (
    momentum as momentum,
    nag as nag,
    nag_eval_params as nag_eval_params,
    sgd as sgd,
)
from optabs.optimizers.adaptive import (
    adadelta as adadelta,
    adagrad as adagrad,
    rmsprop as rmsprop,
)
from optabs.optimizers.adam_family import adam as adam, adamw as adamw, nadam as nadam

# OptimABS: |g| for g^2
from optabs.optimizers.adaptive import (
    adadelta_abs as adadelta_abs,
    adagrad_abs as adagrad_abs,
    rmsprop_abs as rmsprop_abs,
)
from optabs.optimizers.adam_family import (
    adam_abs as adam_abs,
    adamw_abs as adamw_abs,
    nadam_abs as nadam_abs,
)

# DAO-E: a mixture of optimizers
from optabs.mixture.dao_e import dao_e as dao_e, steered as steered
from optabs.mixture import features as features
from optabs.mixture.controller import Controller as Controller
from optabs.mixture.state import mixing_weights as mixing_weights

# Gadam: a population that learns and evolves
from optabs.evolution.devices import connect as connect
from optabs.evolution.population import Gadam as Gadam, gadam as gadam
from optabs.evolution.running import GadamResult as GadamResult
from optabs.evolution.state import Evolution as Evolution, GadamState as GadamState
from optabs.evolution.learning import vmapped as vmapped
from optabs import genetics as genetics

# Storage: optimizers' moments, and parameters, in fewer bits
from optabs.storage.conversion import (
    NarrowState as NarrowState,
    decode_state as decode_state,
    encode_state as encode_state,
)
from optabs.storage.narrowing import narrow_state as narrow_state
from optabs.storage.params import (
    NarrowParamsState as NarrowParamsState,
    exact_params as exact_params,
    narrow_params as narrow_params,
)
from optabs.storage.report import NarrowReport as NarrowReport, narrow_report as narrow_report

# Training
from optabs import losses as losses
from optabs.initializers import normal_like as normal_like
from optabs.training.fitting import FitResult as FitResult, fit as fit

_sys.modules["optabs.features"] = features  # so that it can be imported by that name as well
