"""The check of layouts finds what is wrong with one, and names it."""

import json
from pathlib import Path

import pytest

from hekaton.testing import check_layouts

RUN = [
    "--plugins.load", str(Path(__file__).with_name("short_documents.py")),
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides",
    json.dumps({"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 264}),
    "--training.dataset", "short_documents", "--training.seq_len", "16", "--training.steps", "3",
]  # fmt: skip
WRONG = """
import os
from hekaton.contributions import Converter, Ref, hookimpl

@hookimpl
def hekaton_converters():
    return [Converter("wrong", build=Ref("wrong:build"), summary="Depends on the number of processes.")]

class Wrong:
    def convert(self, draft):
        scale = 1 + 1e-6 * int(os.environ["WORLD_SIZE"])
        draft.model.norm.register_forward_hook(lambda module, inputs, output: output * scale)
        return draft

def build(section, dims):
    return Wrong()
"""


def test_a_layout_that_computes_something_else_is_named(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    wrong = ["--plugins.load", str(tmp_path / "wrong.py"), "--model.converters", '["wrong"]']
    with pytest.raises(AssertionError) as caught:
        check_layouts(*RUN, *wrong, layouts=["shard2", "replicate2"])
    first, *lines = str(caught.value).splitlines()
    assert first == "these layouts do not compute what one process does:"
    assert [line.split(":")[0] for line in lines] == ["shard2", "replicate2"]
    assert "the loss of step 1 is " in lines[0]


def test_a_layout_that_is_refused_is_named_with_its_error():
    with pytest.raises(AssertionError, match=r"(?s)does not divide n_heads = 4 .*tp3: hekaton train "):
        check_layouts(*RUN, layouts=["tp3"])
