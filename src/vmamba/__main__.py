"""``python -m vmamba`` is ``vmamba``."""

import sys

from vmamba.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
