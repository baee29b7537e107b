"""Curation of raw pools: embeddings, hierarchical k-means with resampling, balanced sampling (Vo et al., 2024)."""
