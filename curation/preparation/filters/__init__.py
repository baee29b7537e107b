"""Filters over a pool of images: each sees one picture and lets it pass, changed or not, or drops it."""

from curation.preparation.filters.apply import FilterReport, ImageFilter, Verdict, apply_filters

__all__ = ["FilterReport", "ImageFilter", "Verdict", "apply_filters"]
