"""Images: a vision model on a curated subset of a pool with the faults of the web."""
