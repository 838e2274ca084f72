"""``hekaton config show --converters``: which layers converters take, and why they leave the others."""

from __future__ import annotations

from hekaton.cli.arguments import load_files
from hekaton.errors import HekatonError


def show_converters(arguments: list[str]) -> None:
    """Print the layers that the converters of a configuration chose among, those of one kind as one line.

    :raises HekatonError: for a model that cannot be built or converted.
    """
    from hekaton.building import build_meta
    from hekaton.layer_choices import describe
    from hekaton.rules.run import Run

    loaded = load_files(arguments)
    for notice in loaded.notices:
        print(f"notice: {notice}")
    run = Run(loaded.config, loaded.plugins, loaded.origins, None, "cpu", False)
    try:
        meta = build_meta(loaded.config, loaded.plugins, run.model_dims)
    except HekatonError as e:
        raise run.violation(e.message, *getattr(e, "fields", ()), hint=e.hint) from e
    names = loaded.config.model.converters
    if not names:
        print("model.converters names no converter")
    for name in names:
        choices = meta.draft.choices.get(name)
        if choices is None:
            print(f"{name}: chooses no layers")
            continue
        print("\n".join(describe(name, choices)))
