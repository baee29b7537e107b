"""A benchmark of balance: how near each method brings a pool of known concepts to uniform, without any training."""
