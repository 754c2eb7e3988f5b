"""The version of fxrewrite, in one place that both the build and the command line can read without imports."""

__version__ = "0.1.0"
