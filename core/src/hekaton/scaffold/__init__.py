"""A new distribution of plugins, written from templates: ``hekaton new``.

The templates are the modules of ``hekaton.scaffold.templates``, a plugin with one contribution of each kind.
"""

from hekaton.scaffold.kinds import KINDS, Kind, chosen
from hekaton.scaffold.write import distribution_files, write

__all__ = ["KINDS", "Kind", "chosen", "distribution_files", "write"]
