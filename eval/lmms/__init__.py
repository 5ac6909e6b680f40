"""Evaluation by lmms-eval."""
