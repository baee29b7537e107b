"""What every Lightning run of this project shares: whole checkpoints, a folder that belongs to one run, the trainer."""
