"""Experiment 1 of the paper: does the method sample uniformly over the support of known densities?"""
