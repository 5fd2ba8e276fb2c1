"""The fixtures of end-to-end tests."""

from workflow.tiny_run import backbone, cli, decoder, encoder_decoder, files, masked, trained

__all__ = ["backbone", "cli", "decoder", "encoder_decoder", "files", "masked", "trained"]
