"""`python -m gls_jax`: the command line."""

import sys

from gls_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
