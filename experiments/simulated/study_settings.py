"""Section ``science.studies`` of the simulated experiment."""

from dataclasses import dataclass

from experiments.simulated.ablations import AblationSettings
from experiments.simulated.table import TableSettings
from experiments.simulated.theory import TheorySettings


@dataclass(frozen=True)
class Studies:
    """Section ``science.studies``: what is computed on known densities, without any training."""

    table: TableSettings
    theory: TheorySettings
    ablations: AblationSettings
