"""How long a connection is kept for what does not come; the same with doors and without."""

SILENT_SECONDS = 75.0
"""On which nothing has come yet: browsers open some ahead."""
HEAD_SECONDS = 30.0
"""From the first byte of a request to the end of its head, as long as a body may take."""
IDLE_SECONDS = 5
"""Behind an answer, up to the next request's first byte; uvicorn's default."""
