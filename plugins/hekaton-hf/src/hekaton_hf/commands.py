"""Short names of two verbs."""

from __future__ import annotations


def convert_from_hf(arguments: list[str]) -> int:
    """``hekaton convert from-hf ARGUMENTS``."""
    return _convert("from-hf", arguments)


def convert_to_hf(arguments: list[str]) -> int:
    """``hekaton convert to-hf ARGUMENTS``."""
    return _convert("to-hf", arguments)


def _convert(way: str, arguments: list[str]) -> int:
    from hekaton.cli.convert import run

    if not arguments or set(arguments) & {"-h", "--help"}:
        print(f"usage: hekaton convert_{way.replace('-', '_')} IN OUT [options]")
        print(f"\nThe same as 'hekaton convert {way}'; 'hekaton convert --help' lists the options.")
        return 0
    return run([way, *arguments])
