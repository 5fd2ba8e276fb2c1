"""Processes that speak HTTP before the one that has the engine, whose interpreter is then free for it.

    head         the head of a question that a door answers
    connection   one client, in a door
    door         a door's process
    passage      open connections on their way from process to process
    gate         the engine's end of the talk with a door: questions in, answers out
    doors        starts the doors, accepts connections for them, ends them
    continued    a connection that a door gave away, in the engine's process

The engine's process listens and gives each connection to a door. A door answers `POST /v1/classify` and `/v1/tag` where they are as
they should be. All else goes back with the bytes that were read of it, and is answered as if there were no doors: so every
refusal is said in one place. Where such a connection then asks what a door answers, it comes to a door again.
"""
