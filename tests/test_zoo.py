"""Adapters tell folders of other models, and values of other types in config.json; test_conformance.py checks what
models and adapters promise."""

from __future__ import annotations

import pytest

from hekaton.contributions import HFAdapter, Model
from hekaton.errors import CheckpointError
from hekaton.plugins import Plugins
from hekaton.weights.counterpart import adapter_of, adapters_of, read_config

PLUGINS = Plugins.discover()


def test_the_zoo_has_models():
    assert "llama3" in PLUGINS.all(Model)


@pytest.mark.parametrize("name", PLUGINS.all(HFAdapter))
def test_a_folder_of_another_architecture_names_the_model_that_reads_it(name):
    adapters = adapters_of(PLUGINS)
    others = [one for one in adapters if one.name != name]
    files = [(other, {"architectures": [kind]}, kind) for other in others for kind in other.architectures]
    files += [(other, {"model_type": kind}, kind) for other in others for kind in other.model_types]
    assert len(files) >= 2 * len(others)
    for other, content, kind in files:
        with pytest.raises(CheckpointError) as error:
            read_config(adapter_of(PLUGINS, name), content, adapters=adapters, what="there")
        assert error.value.message == f"there is a {kind}, not a {name}"
        assert f'choose model.name = "{other.name}" (--model_name {other.name})\n' in error.value.hint
    with pytest.raises(CheckpointError, match="there is a MambaForCausalLM") as error:
        content = {"architectures": ["MambaForCausalLM"]}
        read_config(adapter_of(PLUGINS, name), content, adapters=adapters, what="there")
    assert "choose" not in error.value.hint


_WRONG: dict[type, list[object]] = {
    bool: ["true", 0, 1, None, []],
    int: ["64", True, 1.5, [1], {}, -2, 10**30],
    float: ["1e-5", True, [1.0], {}, -1.0, 1e300],
    str: [1, True, ["silu"], {}],
    list: ["x", 3, {}, [None], ["x"], True],
    dict: ["x", 3, True, [], [1], {"no_such_key": 1}],
}
"""What no value of a type may be."""
_OFTEN_NULL = {"bos_token_id": int, "eos_token_id": int, "pad_token_id": int, "rope_scaling": dict}


@pytest.mark.parametrize("name", PLUGINS.all(HFAdapter))
def test_a_value_of_another_type_in_config_json_is_an_error_that_names_it(name):
    adapter, spec = adapter_of(PLUGINS, name), PLUGINS.get(Model, name).spec.load()
    content = adapter.write_config.load()(spec.flavors["debugmodel"])
    content = {"architectures": list(adapter.architectures[:1]), "pad_token_id": None, **content}
    assert read_config(adapter, content, what="there") == spec.flavors["debugmodel"]
    tried = 0
    for key, value in content.items():
        kind = _OFTEN_NULL.get(key, type(value))
        for wrong in _WRONG.get(kind, []):
            if key == "eos_token_id" and wrong == [1]:
                continue  # a list of such ids
            tried += 1
            with pytest.raises(CheckpointError) as error:
                read_config(adapter, {**content, key: wrong}, what="there")
            said = f"{error.value.message} {error.value.hint}"
            assert said.startswith("there"), said
            assert key in said or "no_such_key" in said or key == "architectures", (
                f"{key} = {wrong!r}: {said}"
            )
    assert tried > 80
