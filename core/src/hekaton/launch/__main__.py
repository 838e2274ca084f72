"""``python -m hekaton.launch``: torchrun without its report, where a process has said what is wrong."""

import sys

from hekaton.launch.torchrun import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
