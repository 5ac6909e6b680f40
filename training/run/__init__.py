"""What both loops share: recipes, folders, ranks and backends, checkpoints, optimizers, numbers."""
