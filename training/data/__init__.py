"""The language model's training data: scenes, shards of messages, and their mixture, read by number."""
