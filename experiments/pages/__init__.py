"""Pages: the report of a run folder, sentences and figures of written-up results, the W&B dashboard."""
