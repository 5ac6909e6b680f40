"""What both training loops share: recipes, run folders, ranks and backends, checkpoints, optimizers, metrics."""
