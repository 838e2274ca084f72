"""The configuration written out again, and its schema."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import tomli

from hekaton.config import as_dict, json_schema, load, to_toml

RUN = """\
[model]
flavor = "8B"
converters = ["halves"]
overrides = {n_layers = 3, rope_theta = 5e5}

[optimizer]
lr = 1e-05

[training]
steps = 12
dataset_path = 'a "quoted" \\ path'

[parallelism]
module_fqns_per_model_part = [["a"], ["b", "c"]]

[halves]
times = 3
names = ["x"]

[job]
description = "naïve — ok"
"""


def test_toml_loads_to_the_same_configuration(load_run):
    loaded = load_run(RUN, "--debug.seed", "3")
    Path("again.toml").write_text(to_toml(loaded.config), encoding="utf-8")
    again = load(["again.toml"])
    assert as_dict(again.config) == as_dict(loaded.config)
    assert again.config.model_dump() == loaded.config.model_dump()
    assert again.config.training.seq_len == 4096


def test_toml_of_defaults_gives_no_notice(load_run):
    Path("again.toml").write_text(to_toml(load_run().config))
    assert load(["again.toml"]).notices == ()


def test_values_that_are_not_set_are_left_out(load_run):
    Path("other.toml").write_text("")
    written = tomli.loads(to_toml(load_run(RUN, "--job.config_file", "other.toml").config))
    assert "config_file" not in written["job"]
    assert "hf_assets_path" not in written["model"]
    assert "tokenizer_path" not in written["model"]
    assert "quantize" not in written
    assert written["halves"] == {"times": 3, "names": ["x"], "gently": True}
    assert written["training"]["seq_len"] == 4096


@pytest.fixture
def schema(load_run):
    return json_schema(load_run().plugins)


def valid(schema, toml: str) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(tomli.loads(toml))


def test_the_schema_is_a_valid_json_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(schema)


@pytest.mark.parametrize("toml", ["", RUN, "[training.dataloader]\nnum_workers = 2\n", "[debug]\nseed = 1\n"])
def test_the_schema_accepts_sound_configurations(schema, toml):
    assert valid(schema, toml)


@pytest.mark.parametrize(
    "toml",
    [
        "[trainig]\n",
        "[training]\nstep = 1\n",
        '[training]\nsteps = "1"\n',
        "[training]\nsteps = 0\n",
        '[lr_scheduler]\ndecay_type = "cosin"\n',
        "[halves]\ntimes = 0\n",
        "[halves]\ntime = 1\n",
    ],
)
def test_the_schema_rejects_wrong_configurations(schema, toml):
    assert not valid(schema, toml)


def test_the_schema_describes_fields_and_names_what_is_installed(schema):
    training = schema["$defs"]["TrainingSection"]
    assert training["description"] == "Data, batch, length, precision."
    assert training["properties"]["seq_len"]["description"] == "Tokens in a row."
    assert "c4_test" in training["properties"]["dataset"]["examples"]
    model = schema["$defs"]["ModelSection"]["properties"]
    assert model["converters"]["items"]["examples"] == ["halves"]
    assert model["tokenizer_path"]["deprecated"] is True
    assert schema["$defs"]["HalvesSection"]["properties"]["times"]["description"] == "How often."


def test_a_file_that_is_not_there_is_said_before_torch_is_imported():
    code = (
        "import sys; from hekaton.cli import main; main(['train', 'no.toml']); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no.toml" in done.stderr
    assert done.stdout == "False\n"
