"""How judged drawings become an update. A new method is a file here and a line in `METHODS`.

A method is made for a run, with the frozen model it began with if it `needs_start`. Its `update` takes this rank's
groups, a list for each micro-batch, of which each prompt without a signal must count nothing; all ranks call it.
"""

from .dpo import Dpo
from .grpo import Grpo
from .rejection import Rejection

METHODS = {"grpo": Grpo, "rejection": Rejection, "dpo": Dpo}
