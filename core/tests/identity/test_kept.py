"""What a change since a checkpoint means, by what is declared of the value."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from hekaton.config import AtResume
from hekaton.errors import CheckpointError, ConfigError
from hekaton.identity.built import grouped
from hekaton.identity.history import history_in
from hekaton.identity.kept import Identity, in_effect
from hekaton.identity.resume import compare
from hekaton.identity.values import config_values, meaning_of, model_meanings, model_values

Mathematics = AtResume("refusal")


@dataclass(frozen=True)
class Scaling:
    factor: float = 8.0
    rate: Annotated[float, AtResume("notice")] = 0.1


@dataclass(frozen=True)
class Model:
    n_layers: int = 2
    theta: Annotated[float, Mathematics] = 1e4
    scaling: Annotated[Scaling | None, Mathematics] = None


def identity(model: Model, **config: Any) -> Identity:
    defaults = {
        "training.steps": 10, "training.seed": None, "optimizer.name": "AdamW", "optimizer.lr": 0.1,
        "lr_scheduler.total_steps": 10,
    }  # fmt: skip
    return Identity(
        config={**{name: value for name, value in defaults.items() if value is not None}, **config},
        others={**model_values(model), "version of torch": "2.13"},
        contributed=["image.tag"],
        meanings={
            **model_meanings(model), "training.steps": "nothing", "optimizer.name": "refusal",
            "optimizer.lr": "notice",
        },
        defaults=defaults,
    )  # fmt: skip


def saved(model: Model, *, identity_too: bool = True, **config: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = {
        "training": {"steps": 10}, "optimizer": {"name": "AdamW", "lr": 0.1}, "lr_scheduler": {"total_steps": 10}
    }  # fmt: skip
    for name, table in config.items():
        tables[name] = {**tables.get(name, {}), **table}
    kept = {"identity": identity(model).to_json()} if identity_too else {}
    return {"config": tables, **kept}


def changed(now: Identity, describe: dict[str, Any], **arguments: Any) -> tuple[list[str], list[str]]:
    notices, refused = now.changes_since(describe, step=5, **arguments)
    return [one.field for one in notices], [one.field for one in refused]


def test_the_same_run_has_no_changes() -> None:
    assert changed(identity(Model()), saved(Model())) == ([], [])


def test_nothing_a_notice_or_a_refusal() -> None:
    now = identity(Model(), **{"training.steps": 20, "optimizer.lr": 0.2, "optimizer.name": "Adam"})
    assert changed(now, saved(Model())) == (["optimizer.lr"], ["optimizer.name"])


def test_a_part_that_starts_afresh_may_be_another() -> None:
    now = identity(Model(theta=2.0), **{"optimizer.name": "Adam"})
    assert changed(now, saved(Model()), not_loaded=["optimizer"]) == (["optimizer.name"], ["model.theta"])
    assert changed(now, saved(Model()), not_loaded=["model"]) == (["model.theta"], ["optimizer.name"])


def test_an_entry_of_a_list_of_tables_is_named_by_its_number_and_field() -> None:
    groups = [{"match": "*norm*", "lr_factor": 1.0}, {"match": "*", "lr_factor": 1.0}]
    other = [groups[0], {**groups[1], "lr_factor": 2.0}]
    before = config_values({"optimizer": {"groups": groups}})
    now = identity(Model(), **config_values({"optimizer": {"groups": other}}))
    now = replace(now, defaults={**now.defaults, "optimizer.groups": []})
    assert before["optimizer.groups.1.match"] == "*"
    assert changed(now, saved(Model(), optimizer={"groups": groups}))[0] == ["optimizer.groups.1.lr_factor"]
    fields = [f"optimizer.groups.{number}.{name}" for number in (0, 1) for name in ("match", "lr_factor")]
    assert changed(now, saved(Model()))[0] == fields


def test_a_value_that_was_not_set_or_is_not_any_more() -> None:
    assert changed(identity(Model(), **{"training.seed": 1}), saved(Model())) == (["training.seed"], [])
    assert changed(identity(Model()), saved(Model(), training={"seed": 1})) == (["training.seed"], [])


def test_a_field_of_a_model_has_the_meaning_of_what_it_is_in_unless_it_has_its_own() -> None:
    scaled = Model(scaling=Scaling())
    meanings = model_meanings(scaled)
    assert meaning_of("model.scaling.factor", meanings) == "refusal"
    assert meaning_of("model.scaling.rate", meanings) == "notice"
    assert meaning_of("model.n_layers", meanings) == "notice"
    assert changed(identity(scaled), saved(Model())) == ([], ["model.scaling"])
    assert changed(identity(Model()), saved(scaled)) == ([], ["model.scaling"])
    other = identity(Model(scaling=Scaling(factor=4.0, rate=0.2)))
    assert changed(other, saved(scaled)) == (["model.scaling.rate"], ["model.scaling.factor"])


def test_what_a_plugin_adds_later_is_a_change_and_a_new_field_of_the_model_is_none() -> None:
    now = identity(Model())
    now = Identity(**{**vars(now), "others": {**now.others, "image.tag": "b", "model.new": 1}})
    assert changed(now, saved(Model())) == (["image.tag"], [])
    assert changed(now, saved(Model(), identity_too=False)) == ([], [])


def test_imported_code_is_compared_where_both_runs_imported_it() -> None:
    name = "imported code of helper"
    kept = saved(Model())
    kept["identity"] = {**kept["identity"], name: "a", "imported code of gone": "a"}
    now = identity(Model())
    now = replace(now, others={**now.others, name: "b", "imported code of new": "b"})
    assert changed(now, kept) == ([name], [])


def test_of_a_conversion_only_what_it_says_is_compared() -> None:
    describe = {"config": {"optimizer": {"name": "Adam"}}, "identity": {"model.theta": 1.0}}
    assert changed(identity(Model()), describe) == ([], ["optimizer.name", "model.theta"])
    assert [one.field for one in identity(Model()).of_weights(describe)] == ["model.theta"]


def test_accepting_needs_a_name_that_there_is() -> None:
    identity(Model()).check_accepted(["model.theta", "model.scaling", "optimizer"])
    with pytest.raises(ConfigError, match=r"names 'model\.theeta', which is no value of this run") as error:
        identity(Model()).check_accepted(["model.theeta"])
    assert "did you mean 'model.theta'?" in str(error.value)


def test_accepted_changes_join_the_history() -> None:
    describe = {**saved(Model()), "history": [{"step": 2, "field": "optimizer.lr", "was": 1, "now": 0.1}]}
    now = identity(Model(theta=2.0))
    with pytest.raises(
        CheckpointError, match=r"step 5 is of another run: model\.theta was 10000\.0"
    ) as error:
        compare(now, describe, step=5, accepted=["optimizer.name"])
    assert '[checkpoint] accept_changes = ["model.theta"]' in str(error.value)
    history = compare(now, describe, step=5, accepted=["model.theta"])
    assert [(one.step, one.field, one.was, one.now) for one in history] == [
        (2, "optimizer.lr", 1, 0.1),
        (5, "model.theta", 1e4, 2.0),
    ]


@pytest.mark.parametrize("history", [None, 3, {"step": 1}, [3, {"step": "1", "field": "a"}, {"field": "a"}]])
def test_a_history_that_no_run_wrote_is_left_out(history: Any) -> None:
    assert history_in({"history": history}) == []


def test_the_length_of_the_schedule_and_the_rows_of_a_step_are_those_in_effect() -> None:
    config = {"training.steps": 7, "training.local_batch_size": 2, "training.global_batch_size": -1}
    found = in_effect(config, {"dp_replicate": 2, "dp_shard": 3, "tp": 5})
    assert found["lr_scheduler.total_steps"] == 7
    assert found["training.global_batch_size"] == 12
    given = {**config, "lr_scheduler.total_steps": 9, "training.global_batch_size": 8}
    assert in_effect(given, {"dp_shard": 3}) == given


def test_many_files_are_looked_at_in_groups_of_neighbours() -> None:
    files = {f"{number:02}.txt": f"content {number}" for number in range(7)}
    assert grouped(files, most=7) == files
    groups = grouped(files, most=3)
    assert list(groups) == ["00.txt to 02.txt", "03.txt to 05.txt", "06.txt to 06.txt"]
    other = grouped({**files, "04.txt": "another"}, most=3)
    assert [name for name in groups if groups[name] != other[name]] == ["03.txt to 05.txt"]
