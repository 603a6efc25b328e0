"""Gadam's operators: selection, crossover, mutation and survival, each for one individual.

All of them are pure functions of a key and arrays, to be mapped over a population by
`jax.vmap` and compiled with what surrounds them.
"""

from optabs.genetics.draws import (
    either as either,
    normal_around as normal_around,
    uniform_like as uniform_like,
)
from optabs.genetics.selection import (
    normalize_losses as normalize_losses,
    select_parents as select_parents,
    selection_probabilities as selection_probabilities,
    survivors as survivors,
)
from optabs.genetics.variation import (
    crossover as crossover,
    crossover_mask as crossover_mask,
    mutate as mutate,
    mutation_rate as mutation_rate,
)
