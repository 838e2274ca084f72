"""Run by test_first_cause.py on two processes: what each ends with when one of them fails."""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch.distributed as dist

from hekaton.checkpoint.ranks import Ranks
from hekaton.config.sections import CommSection
from hekaton.distributed import process_group, this_process
from hekaton.errors import DataError, HekatonError
from hekaton.failures import shown, watch
from hekaton.failures.arrival import tell_the_others
from hekaton.failures.whereabouts import Whereabouts


def run(cases: dict[str, dict], folder: str) -> None:
    """:param cases: name -> ``what`` each rank does, and the number of ``machines``."""
    shown.LOOKS = 1.0
    rank = int(os.environ["RANK"])
    said = {}
    for name, case in cases.items():
        print(f"-- {name}", flush=True)
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        os.environ["GROUP_RANK"] = str(rank % case["machines"])
        os.environ["TORCHELASTIC_ERROR_FILE"] = str(Path(folder, f"{name}-{rank}-torchrun.json"))
        said[name] = outcome(case["what"][rank], Path(folder, name))
    Path(folder, f"said-{rank}.json").write_text(json.dumps(said))


def outcome(what: str, folder: Path, *, seconds: int = 60) -> dict:
    if what == "fails before":
        error = DataError("not on this machine", hint="install it")
        tell_the_others(error)
        return {"text": str(error)}
    if what == "never comes":
        time.sleep(2.5)
        return {}
    try:
        settings = CommSection(init_timeout_seconds=1 if what == "waits" else seconds)
        where = Whereabouts(3, "data")
        with process_group(this_process(), settings, dump_folder=str(folder), where=where):
            dist.barrier()
            act(what)
    except Exception as error:
        return {
            "type": type(error).__name__,
            "text": str(error),
            "exit_code": error.exit_code if isinstance(error, HekatonError) else 1,
        }
    return {}


def act(what: str) -> None:
    if what == "defect":
        raise ValueError("only here")
    if what == "user error":
        raise DataError("the file is gone", hint="look for it")
    if what == "later":
        time.sleep(0.5)
        raise KeyError("another")
    if what == "at the next collective":
        dist.barrier()
        dist.barrier()
    if what == "cleanup":
        try:
            raise ValueError("only here")
        finally:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    if what in ("known to all", "known to all, late"):
        if dist.get_rank() == 1 and what != "known to all":
            time.sleep(0.5)
            dist.new_group([1])  # through the store that rank 0 holds
        error = DataError("machines differ")
        error.everywhere = True
        raise error
    if what == "raised on all":
        Ranks.of().each(partial(fail_on_rank, 1))
    if what == "handles":
        try:
            dist.barrier()
        finally:
            {}["what was not done"]


def fail_on_rank(rank: int) -> None:
    if dist.get_rank() == rank:
        raise DataError("the file is gone", hint="look for it")


def killed(folder: str) -> None:
    """Rank 1 ends without a word."""
    shown.LOOKS = 0.5
    os.environ["GROUP_RANK"] = os.environ["RANK"]
    process = this_process()
    if process.rank == 0:
        Path(folder, "said.json").write_text(json.dumps(outcome("at the next collective", Path(folder))))
        return
    with process_group(process, CommSection(), dump_folder=folder):
        dist.barrier()
        os._exit(0)


def missed(folder: str) -> None:
    """Rank 1 does not come to a collective in which rank 0 waits for it, and is ended."""
    shown.LOOKS, shown.SAY_WHERE = 0.2, 1.0
    watch.ASKED_EVERY, watch.LEFT = 0.1, 0.3
    os.environ["GROUP_RANK"] = os.environ["RANK"]
    process = this_process()
    if process.rank == 0:
        said = outcome("at the next collective", Path(folder), seconds=2)
        Path(folder, "said.json").write_text(json.dumps(said))
        return
    watch.ended_with_the_others.__wrapped__.__kwdefaults__["end"] = lambda status: os._exit(0)
    where = Whereabouts(7, "data")
    with process_group(process, CommSection(), dump_folder=folder, where=where):
        dist.barrier()
        time.sleep(60)


def stuck(folder: str) -> None:
    """Rank 0 waits for something else than a collective, and is ended."""
    watch.ASKED_EVERY, watch.LEFT = 0.1, 0.3
    os.environ["GROUP_RANK"] = os.environ["RANK"]
    process = this_process()
    ends = os._exit

    def end(status: int) -> None:
        Path(folder, "status").write_text(str(status))
        sys.stderr.flush()
        ends(0)

    watch.ended_with_the_others.__wrapped__.__kwdefaults__["end"] = end
    if process.rank == 1:
        assert outcome("user error", Path(folder))["type"] == "DataError"
        return
    with process_group(process, CommSection(), dump_folder=folder):
        dist.barrier()
        time.sleep(60)
