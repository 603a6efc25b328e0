"""Declared weaknesses that the sound optimizer does not have."""

import optabs
from broken.registry import NOT_RAISED, factory_for

factory_for("check_leaves_are_coupled", apart=False)(optabs.momentum)
factory_for("check_entries_are_coupled", "check_update_only_reduces", element_wise=False)(
    optabs.momentum
)
factory_for("check_state_is_narrow", full_width=False)(optabs.momentum)
factory_for("check_params_are_asked_for", raises=NOT_RAISED, without_params=False)(
    optabs.momentum
)
factory_for("check_value_is_asked_for", raises=NOT_RAISED, without_value=False)(
    optabs.momentum
)
factory_for("check_nan_is_skipped", passes_nan=False)(optabs.momentum)
factory_for("check_complex_is_refused", raises=NOT_RAISED, complex_ok=False)(optabs.momentum)
