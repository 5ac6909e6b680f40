"""What the language model trains on: scenes, shards, and their mixture, read by number."""
