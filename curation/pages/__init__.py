"""Pages that people read: reports, subsets side by side, galleries, cards."""
