"""The commands of `fxrewrite`, one module each: arguments in, one call of the API, a report out.

Invariant: importing any module here loads neither onnx, numpy, torch nor rich; a command imports what it
needs when it runs.
"""
