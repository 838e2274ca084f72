"""Run on several processes by test_text.py."""

from pathlib import Path

import datasets

from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build


def build_and_tell(path: str, cache: str) -> None:
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    documents = build(TextDatasetSection(), path)
    print(len(documents), documents.fetch([4999])[0], documents.fingerprint)
