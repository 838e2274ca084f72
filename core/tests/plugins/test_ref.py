"""Names of heavy code."""

from __future__ import annotations

import os.path
import sys

import pytest

from hekaton.contributions import Ref
from hekaton.errors import ConfigError, PluginError


def test_a_ref_loads_what_it_names():
    assert Ref("os.path:join").load() is os.path.join
    assert Ref("pathlib:Path.cwd").load().__name__ == "cwd"


def test_making_a_ref_imports_nothing(site):
    (site / "heavy.py").write_text("value = 3")
    ref = Ref("heavy:value")
    assert "heavy" not in sys.modules
    assert ref.load() == 3


@pytest.mark.parametrize(
    "target", ["os.path", "os.path:", ":join", "os path:join", "os:path:join", "", "os/path:join"]
)
def test_a_malformed_ref_is_refused_where_it_is_made(target):
    with pytest.raises(PluginError, match="is not of the form 'module:attribute'"):
        Ref(target)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise BaseException('mine')", "BaseException: mine"),
    ],
)
def test_a_module_that_fails_to_import(site, code, reason):
    (site / "heavy.py").write_text(code)
    with pytest.raises(PluginError) as caught:
        Ref("heavy:value").load()
    assert caught.value.message.startswith(f"cannot import 'heavy:value': {reason}")
    assert caught.value.hint == "python -c 'import heavy' shows where"


def test_a_missing_attribute():
    with pytest.raises(PluginError, match=r"cannot load 'os\.path:jion': .*has no attribute 'jion'"):
        Ref("os.path:jion").load()


def test_an_error_of_hekatons_own_passes_as_it_is(site):
    (site / "heavy.py").write_text("from hekaton.errors import ConfigError\nraise ConfigError('not here')")
    with pytest.raises(ConfigError, match=r"^not here$"):
        Ref("heavy:value").load()


def test_an_object_that_is_not_callable_is_no_function():
    assert Ref("os.path:join").function() is os.path.join
    with pytest.raises(PluginError, match=r"'os\.path:sep' cannot be called: it is of type str"):
        Ref("os.path:sep").function()


def test_the_specification_of_a_model_is_a_train_spec(site):
    from hekaton.contributions import Model
    from hekaton.spec import load_spec

    (site / "heavy.py").write_text("def spec(): ...")
    with pytest.raises(PluginError, match="model 'tiny': 'heavy:spec' is of type function, not TrainSpec"):
        load_spec(Model("tiny", spec=Ref("heavy:spec")))
