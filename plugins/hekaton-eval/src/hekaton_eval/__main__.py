"""``python -m hekaton_eval``: the program ``lm_eval`` with the backend ``hekaton``.

For releases of lm-eval that do not look for backends of other packages, 0.4.13 among them; those that do find
it by its entry point.
"""

from __future__ import annotations

import sys

from hekaton.cli import report
from hekaton.errors import HekatonError


def main() -> int:
    from lm_eval.__main__ import cli_evaluate

    import hekaton_eval.backend  # noqa: F401  (registers it)

    try:
        cli_evaluate()
    except HekatonError as error:
        report(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
