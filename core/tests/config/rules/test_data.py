"""Rules of mixtures and of sets that are validated on: each message, with its place."""

from __future__ import annotations

import pytest

from hekaton.errors import ConfigErrors
from hekaton.rules import check, layout, rules

MIXTURE = '[training]\ndataset = "mixture"\n'
SETS = "[validation]\nenable = true\n"


@pytest.fixture
def problems(load_run, monkeypatch):
    others = [rule for rule in rules.RULES if rule is not layout.plan_can_be_carried_out]
    monkeypatch.setattr(rules, "RULES", others)

    def problems(toml: str) -> str:
        with pytest.raises(ConfigErrors) as caught:
            check(load_run(toml), world_size=1, device_type="cpu")
        return "\n".join(str(problem) for problem in caught.value.problems)

    return problems


def source(weight="1", dataset="python_stdlib", more=""):
    return f'[[mixture.sources]]\ndataset = "{dataset}"\nweight = {weight}\n{more}'


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (MIXTURE, "dataset 'mixture' has no sources"),
        (MIXTURE + source("0") + source("0.0"), "the weights of all sources of the mixture are 0"),
        (MIXTURE + source("1", more="later = [{step = 5, weight = 0}]"),
         "the weights of all sources of the mixture are 0 from step 6 on"),
        (MIXTURE + source(dataset=""), "entry 1 of [[mixture.sources]] names no dataset"),
        (MIXTURE + source(dataset="mixture"), "a mixture cannot be a source of a mixture"),
        (MIXTURE + source(dataset="python_stdlb"), "unknown dataset 'python_stdlb'"),
        (source(), "[[mixture.sources]] has 1 entries, but training.dataset = 'python_stdlib' does not read"),
        (MIXTURE.replace("mixture\"", "mixture\"\ndataset_path = \"x\"") + source(),
         "dataset 'mixture' takes no dataset_path"),
        (SETS + "[[validation.sets]]\nname = \"a\"\n", "entry 1 of [[validation.sets]] names no dataset"),
        (SETS + '[[validation.sets]]\ndataset = "mixture"\n', "a mixture is no set"),
        (SETS + '[[validation.sets]]\ndataset = "python_stdlb"\n', "unknown dataset 'python_stdlb'"),
        (SETS + '[[validation.sets]]\ndataset = "python_stdlib"\n' * 2,
         "entry 2 of [[validation.sets]] has the name 'python_stdlib' of another one"),
        (SETS + 'dataset = "python_stdlib_validation"\nsteps = 3\n[[validation.sets]]\ndataset = "python_stdlib"\n',
         "validation.dataset is set, but [[validation.sets]] take its place"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_data_is_said(problems, toml, message):
    assert message in problems(toml)


@pytest.mark.parametrize("weight", ["-0.5", "nan", "inf", '"much"'])
def test_weights_are_numbers_from_zero(load_run, weight):
    with pytest.raises(ConfigErrors, match=r"mixture\.sources.*weight"):
        load_run(MIXTURE + source(weight))


@pytest.mark.parametrize(
    ("packing", "says"), [("documents", False), ("concat", False), ("one_per_row", True)]
)
def test_rows_that_are_padded_make_weights_those_of_rows(load_run, monkeypatch, packing, says):
    others = [rule for rule in rules.RULES if rule is not layout.plan_can_be_carried_out]
    monkeypatch.setattr(rules, "RULES", others)
    toml = MIXTURE + f'packing = "{packing}"\n' + source()
    notices = check(load_run(toml), world_size=1, device_type="cpu")
    expected = "the weights of the mixture are shares of rows"
    assert any(expected in notice for notice in notices) == says
