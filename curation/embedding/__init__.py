"""From pictures and texts to rows of numbers."""
