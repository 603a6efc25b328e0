"""The networks that the experiments train."""

from itertools import pairwise

import jax
from flax import nnx


class MLP(nnx.Module):
    """A multi-layer perceptron with ReLU between its layers, over flattened inputs."""

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [
                nnx.Linear(width_in, width_out, rngs=rngs)
                for width_in, width_out in pairwise(widths)
            ]
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits of shape [batch, classes] for inputs of shape [batch, ...]."""
        hidden = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers[:-1]:
            hidden = jax.nn.relu(layer(hidden))
        return self.layers[-1](hidden)
