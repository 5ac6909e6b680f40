"""The evaluation of scenes models."""
