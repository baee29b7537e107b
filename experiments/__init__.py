"""Experiments: arms x seeds x stages, each result kept on disk, laid side by side in a report."""
