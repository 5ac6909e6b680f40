"""The commands. Each begins here, before torch is imported."""

import os

from eval.threads import choose_threads

choose_threads(os.environ)
