"""The language model's loop: from a recipe to a model, an update, and what a run says."""
