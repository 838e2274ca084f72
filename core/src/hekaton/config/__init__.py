"""Configuration: sections, TOML files and flags, and what it is written as.

Importing this imports no torch; :func:`load` does, for the model that is named.
"""

from hekaton.config.base import AtResume, MayDiffer, PathField, SectionModel
from hekaton.config.job import JobConfig
from hekaton.config.loading import Loaded, load
from hekaton.config.output import as_dict, json_schema, to_toml

__all__ = [
    "AtResume",
    "JobConfig",
    "Loaded",
    "MayDiffer",
    "PathField",
    "SectionModel",
    "as_dict",
    "json_schema",
    "load",
    "to_toml",
]
