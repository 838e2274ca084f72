"""Faults of a run that nobody raises: replicas that are no longer equal, computation that does not repeat."""

from hekaton.fault.checks import FaultChecks

__all__ = ["FaultChecks"]
