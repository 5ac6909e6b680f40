"""GenEval: prompts drawn to its folders, and its rules."""
