"""How long a connection is kept for what does not come; the same with doors and without."""

SILENT_SECONDS = 75.0
"""On which nothing has come yet: browsers open some ahead."""
HEAD_SECONDS = 30.0
"""From the first byte of a request to the end of its head, as long as a body may take."""
IDLE_SECONDS = 75
"""Behind an answer, up to the next request's first byte. Proxies and load balancers keep theirs for 60 seconds: were ours the
shorter time, they would now and then send a request into a connection that is just being closed, and tell their client 502."""
