"""The commands. Each begins here, before torch is imported."""

import os

from scripts._threads import settle

settle(os.environ)
