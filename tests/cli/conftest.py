"""The fixtures of end-to-end tests."""

from workflow.tiny_run import backbone, cli, files, trained

__all__ = ["backbone", "cli", "files", "trained"]
