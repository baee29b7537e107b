"""The text experiment: passages embedded and curated, a small language model trained on each subset, bits per byte."""
