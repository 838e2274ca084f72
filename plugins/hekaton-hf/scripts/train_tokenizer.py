"""Train the tokenizer that hekaton-hf ships, on the dataset ``python_stdlib`` of the running interpreter.

    python scripts/train_tokenizer.py [FOLDER]

Deterministic: the same interpreter gives the same files. FOLDER defaults to the one that is shipped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hekaton.data.stdlib import build
from hekaton_hf.tokenizer import SHIPPED

VOCAB_SIZE = 2048
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
WORDS = r" ?\p{L}+|\p{N}|_+| ?[^\s\p{L}\p{N}_]+|\s*\n|\s+(?!\S)|\s+"
"""What merges do not cross: a word or punctuation with the space before it, a digit, underscores, the end of
a line, indentation."""


def train(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` ids, if the texts have that many pairs to merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BEGIN, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    marks = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED)
    documents = build(None, None)
    texts = documents.fetch(range(len(documents)))
    save(train(texts, vocab_size=VOCAB_SIZE), parser.parse_args().folder)
