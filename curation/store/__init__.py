"""Rows of embeddings on disk: any storage, read in blocks; shards and their writer; bad rows."""
