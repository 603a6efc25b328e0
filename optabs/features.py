"""What the controller of `optabs.dao_e` may look at: its features."""

from optabs.ensemble.features import (
    ALL as ALL,
    BATCH as BATCH,
    LEARNING as LEARNING,
    Feature as Feature,
    Observation as Observation,
    batch_entropy as batch_entropy,
    batch_mean as batch_mean,
    batch_variance as batch_variance,
    gradient_norm as gradient_norm,
    gradient_variance as gradient_variance,
    loss as loss,
    loss_decrease as loss_decrease,
)
