"""Learning from its own drawings: a model draws groups of images of a prompt, rewards judge them, and a method makes
an update of the judgement.

To read it: train.py (the loop), drawings.py (prompts to groups), rewards/, policy.py (their log-probabilities in
training), methods/.
"""
