"""Many tasks of one backbone for many callers: requests come in from any thread, one thread owns bank and model.

    requests  what can be asked, what comes back, and how it can fail
    engine    queue -> batch -> step -> answers
    decoder   continuous batching of texts that are being written
    library   a folder of tasks, watched
    http      the server

Nothing here is needed to train, or to use a bank in a program of one's own.
"""
