"""Trees of clusters, the paper's and the default, and the subsets that are drawn from them."""
