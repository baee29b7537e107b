"""What is left out of a pool before it is clustered: duplicates, near-duplicates and junk."""
