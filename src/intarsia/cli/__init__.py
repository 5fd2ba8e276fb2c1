"""The command line: each command parses, calls `intarsia.workflow`, and prints. Nothing heavy is imported before it is needed."""
