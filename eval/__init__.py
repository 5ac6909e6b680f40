"""Evaluation: GenEval's rules, the detector that feeds them in the scenes world, and the scenes report."""
