"""``hekaton flux``: its verbs."""

from __future__ import annotations

from hekaton.errors import ConfigError, choices_hint

USAGE = """\
usage: hekaton flux generate ...    make images with a trained model
       hekaton flux preprocess ...  encode the images and texts of a dataset once

'hekaton flux VERB --help' lists the options."""
_VERBS = ("generate", "preprocess")


def run(arguments: list[str]) -> int:
    """Run ``hekaton flux ARGUMENTS``."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    if verb == "generate":
        from hekaton_flux.generate import run as generate

        return generate(rest)
    if verb == "preprocess":
        from hekaton_flux.preprocess import run as preprocess

        return preprocess(rest)
    raise ConfigError(f"hekaton flux has no verb '{verb}'", hint=choices_hint(verb, _VERBS))
