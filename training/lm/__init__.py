"""Training of the language model: from a recipe to a model, updates, and what a run prints."""
