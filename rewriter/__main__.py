"""`python -m rewriter` is the command `fxrewrite`."""

from rewriter.cli import main

if __name__ == "__main__":
    main()
