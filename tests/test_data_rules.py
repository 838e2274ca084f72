"""Rules of the data: what ``hekaton config check`` accepts can be opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hekaton.config import load
from hekaton.corpus.layout import CorpusManifest, Shard
from hekaton.errors import ConfigErrors
from hekaton.rules import check, sizes

MIXTURE = '[training]\ndataset = "mixture"\n'
SOURCE = '[[mixture.sources]]\ndataset = "python_stdlib"\n'
VALIDATION = '[validation]\nenable = true\n[[validation.sets]]\ndataset = "python_stdlib"\n'


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """``problems(toml, *flags)``: all that is wrong, with their places."""
    monkeypatch.chdir(tmp_path)

    def of(toml: str, *flags: str, here: bool = True) -> str:
        Path("run.toml").write_text(toml)
        try:
            check(
                load(["run.toml"], ["--model.tokenizer", "byte", *flags]),
                world_size=1,
                device_type="cpu",
                here=here,
            )
        except ConfigErrors as e:
            return str(e)
        return ""

    return of


@pytest.mark.parametrize("toml", [MIXTURE + SOURCE, MIXTURE + 2 * SOURCE, VALIDATION, ""])
def test_data_that_is_there_is_accepted(problems, toml):
    assert problems(toml) == ""


WRONG = {
    "no sources": (MIXTURE, "dataset 'mixture' has no sources"),
    "sources without a mixture": (SOURCE, "[[mixture.sources]] has 1 entries, but training.dataset ="),
    "a source without a dataset": (MIXTURE + "[[mixture.sources]]\nweight = 1\n", "entry 1 of [[mixture.sources]] names"),
    "an unknown dataset": (MIXTURE + SOURCE.replace("stdlib", "sdtlib"), "unknown dataset 'python_sdtlib'"),
    "a mixture in a mixture": (
        MIXTURE + SOURCE.replace("python_stdlib", "mixture"), "a mixture cannot be a source of a mixture",
    ),
    "a path of its own": (MIXTURE.replace("mixture\"", "mixture\"\ndataset_path = \"x\"") + SOURCE, "takes no dataset_path"),
    "weights of nothing": (MIXTURE + SOURCE + "weight = 0\n", "the weights of all sources of the mixture are 0"),
    "two weights at once": (
        MIXTURE + SOURCE + "later = [{step = 3, weight = 1}, {step = 3, weight = 2}]\n",
        "entry 1 of [[mixture.sources]] has two weights from step 3 on",
    ),
    "names that are the same": (
        MIXTURE + 2 * (SOURCE + "name = \"a\"\n") + SOURCE + "name = \"a-2\"\n",
        "two sources of the mixture would be called 'a-2'",
    ),
    "settings of a source": (MIXTURE + SOURCE + "settings = {a = 1}\n", "'python_stdlib' has no settings, but a is"),
    "a path that a source does not take": (
        MIXTURE + SOURCE + "dataset_path = \"x\"\n", "dataset 'python_stdlib' takes no dataset_path",
    ),
    "a source that is not there": (
        MIXTURE + "[[mixture.sources]]\ndataset = \"tokens\"\ndataset_path = \"/none\"\n", "cannot read '/none'",
    ),
    "a source without a path": (
        MIXTURE + "[[mixture.sources]]\ndataset = \"tokens\"\n", "dataset 'tokens' needs files to read",
    ),
    "a set that is not there": (
        VALIDATION + "dataset_path = \"x\"\n", "dataset 'python_stdlib' takes no dataset_path",
    ),
    "settings of a set": (VALIDATION + "settings = {a = 1}\n", "'python_stdlib' has no settings, but a is"),
    "a path that the dataset does not take": (
        "[training]\ndataset_path = \"x\"\n", "dataset 'python_stdlib' takes no dataset_path",
    ),
    "settings of another type": (
        MIXTURE + SOURCE.replace("python_stdlib", "text") + "settings = {max_bad_rows = \"x\"}\n",
        "the settings of 'text': max_bad_rows: Input should be a valid integer\n  from",
    ),
    "a name of two lines": (VALIDATION + "name = \"a\\nb\"\n", "a name is one line of printable characters"),
    "a URL": (
        "[training]\ndataset = \"tokens\"\ndataset_path = \"s3://a/b\"\n", "dataset 'tokens' maps files into memory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_data_that_cannot_be_read_is_a_violation_with_its_place(problems, case):
    toml, message = WRONG[case]
    said = problems(toml)
    assert message in said
    assert "from: run.toml, line " in said


@pytest.mark.parametrize("section", ["training", "validation"])
def test_rows_that_do_not_fit_into_memory_are_a_violation(problems, monkeypatch, section):
    monkeypatch.setattr(sizes, "_memory_of_host", lambda: 2**24)
    toml = f"[{section}]\nseq_len = 1024\n" + ("enable = true\n" if section == "validation" else "")
    said = problems(toml + "local_batch_size = 1024\n")  # 1024 * 1024 tokens of three numbers of 8 bytes
    assert f"1,024 rows of {section}.seq_len = 1,024 take 0 GiB before anything is computed" in said
    assert "from: run.toml, line" in said
    assert "before anything" not in problems(toml + "local_batch_size = 1024\n", here=False)
    assert "before anything is computed" not in problems(toml + "local_batch_size = 512\n")


def test_files_of_other_machines_are_not_looked_at(problems):
    tokens = '[training]\ndataset = "tokens"\n'
    assert "cannot read '/none'" in problems(tokens + 'dataset_path = "/none"\n')
    assert problems(tokens + 'dataset_path = "/none"\n', here=False) == ""
    assert "needs files to read" in problems(tokens, here=False)


def test_an_error_of_a_source_or_a_set_names_it(problems, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"123")
    entry = 'dataset = "tokens"\ndataset_path = "a.bin"\n'
    mixture = MIXTURE + SOURCE + '[[mixture.sources]]\nname = "code"\n' + entry
    assert "source 'code': 'a.bin' has 3 bytes, which are no uint16" in problems(mixture)
    found = problems(VALIDATION + "[[validation.sets]]\n" + entry)
    assert "validation data 'tokens': 'a.bin' has 3 bytes" in found


def test_ids_of_another_tokenizer_are_a_violation(problems, tmp_path):
    (tmp_path / "corpus").mkdir()
    for name, content in (("a.bin", bytes(4)), ("a.ends", (2).to_bytes(8, "little"))):
        (tmp_path / "corpus" / name).write_bytes(content)
    tokens = '[training]\ndataset = "tokens"\ndataset_path = "corpus"\n'
    for tokenizer, said in (
        ("byte", ""),
        ("other", "were made with another tokenizer than the run's (9 ids"),
    ):
        manifest = CorpusManifest("uint16", tokenizer, 9, (Shard("a", 1, 2, "", ""),))
        (tmp_path / "corpus" / "corpus.json").write_text(manifest.to_json())
        assert (said in problems(tokens)) if said else problems(tokens) == ""
    larger = replace(manifest, shards=(Shard("a", 1, 3, "", ""),))
    (tmp_path / "corpus" / "corpus.json").write_text(larger.to_json())
    assert "has 4 bytes, and 6 when the corpus was made" in problems(tokens)
