"""``torchrun ... -m hekaton.train --job.config_file FILE [flags]``: the same as ``hekaton train``."""

import sys

from hekaton.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
