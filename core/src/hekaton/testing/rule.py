"""Does a contributed rule keep its contract: violations and notices, and nothing in the runs of others?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hekaton.config import load
from hekaton.config.flags import split_files
from hekaton.errors import HekatonError
from hekaton.rules import Rule, Run


def check_rule(
    rule: Rule, *arguments: str, others: Sequence[str] = (), world_size: int = 1, device_type: str = "cpu"
) -> list[HekatonError | str]:
    """Run a rule on a configuration, and on one that its plugin has no part in.

    It yields errors of hekaton as violations and strings as notices; on the run of others it yields nothing;
    asked twice, it says the same. It leaves the configuration as it is.

    :param arguments: of ``hekaton train``: TOML files and flags.
    :param others: the arguments of a run that the plugin has no part in; by default none, every default.
    :returns: what the rule yields for ``arguments``, to be compared.
    :raises AssertionError: saying what is wrong.
    """
    found = _of(rule, arguments, world_size, device_type)
    again = _of(rule, arguments, world_size, device_type)
    assert list(map(str, found)) == list(map(str, again)), (
        f"it yields {found} the first time and {again} the second time"
    )
    for one in found:
        assert isinstance(one, HekatonError | str), (
            f"it yields {type(one).__name__}: yield run.violation(...), or a string for a notice"
        )
        assert str(one).strip(), "it yields an empty message"
    idle = _of(rule, others, world_size, device_type)
    assert not idle, f"it yields something for a run that does not use its plugin: {idle[0]}"
    return found


def _of(rule: Rule, arguments: Sequence[str], world_size: int, device_type: str) -> list[HekatonError | str]:
    loaded = load(*split_files(arguments))
    before = loaded.config.model_dump()
    found = rule(Run(loaded.config, loaded.plugins, loaded.origins, world_size, device_type, here=False))
    assert isinstance(found, Iterator), f"it returns {type(found).__name__}: write it as a generator"
    listed = list(found)
    assert loaded.config.model_dump() == before, "it changes the configuration that it is given"
    return listed
