"""``python -m hekaton.launch``: torchrun without its report, where a process has said what is wrong."""

import signal
import sys

from hekaton.launch.torchrun import main
from hekaton.stop_signals import SIGNALS
from hekaton.streams import open_closed_streams

if __name__ == "__main__":
    open_closed_streams()
    status = main(sys.argv[1:])
    for number in SIGNALS:  # the status is known: srun ends this launcher when that of another node has ended
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)
