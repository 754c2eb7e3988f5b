"""Files of weights and torch programs: what they hold, how they are loaded without running them, and how they go out.

Invariant: nothing here unpickles. Bytes are read once, examined, and only those same bytes are handed to torch, which
is imported inside the functions that need it.
"""
