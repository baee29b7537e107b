"""`python -m curation` is `curate`: for torchrun and srun."""

from curation.cli import main

main()
