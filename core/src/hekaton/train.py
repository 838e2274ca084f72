"""``torchrun ... -m hekaton.train --job.config_file FILE [flags]``: the same as ``hekaton train``."""

import sys

from hekaton.cli import main
from hekaton.cli.ending import end_with_this_status
from hekaton.streams import open_closed_streams

if __name__ == "__main__":
    open_closed_streams()
    with end_with_this_status() as ending:
        ending.status = main(["train", *sys.argv[1:]])
    sys.exit(ending.status)
