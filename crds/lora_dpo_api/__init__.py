"""The LoraDpoJob API: models, forced values, guidance, TPU catalogue, and the contract between operator and trainer."""
