"""Pools of pictures and texts, as row 17 is row 17: folders, tables, archives, rasters; labels; export of a subset."""
