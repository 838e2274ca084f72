"""What each kind of contribution promises, and the cases that a distribution is tested by."""

from hekaton.testing.conformance.cases import Case, cases_of
from hekaton.testing.conformance.promises import PROMISES, Promise
from hekaton.testing.conformance.subject import CheckedContribution

__all__ = ["PROMISES", "Case", "CheckedContribution", "Promise", "cases_of"]
