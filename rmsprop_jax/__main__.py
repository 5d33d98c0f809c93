"""Run the command line: ``python -m rmsprop_jax inspect run.pt``."""

import sys

if __name__ == "__main__":
    from rmsprop_jax._cli import main

    sys.exit(main())
