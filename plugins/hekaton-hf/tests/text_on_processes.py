"""Run on several processes by test_text.py."""

from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build


def build_and_tell(path: str) -> None:
    documents = build(TextDatasetSection(), path)
    print(len(documents), documents.fetch([4999])[0], documents.fingerprint)
