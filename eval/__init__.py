"""Evaluation: GenEval, distances of image sets, lmms-eval's plugin, the scenes report, and a model's self-check."""
