"""Offline, quiet and repeatable: no test may reach a hub, and warnings are errors."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
