"""Experiment 4 of the paper: curate tiles, pretrain on them, predict canopy height."""
