"""Self-supervised pretraining of vision models: `python -m pretrain`."""
