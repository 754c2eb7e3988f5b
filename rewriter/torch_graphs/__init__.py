"""torch graphs as models: the same patterns on a `torch.export` program as on an ONNX file.

Invariant: a graph is viewed and edited as it is, never converted; torch is imported when it is needed and not before.
"""
