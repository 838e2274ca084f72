"""Rules of [checkpoint]."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hekaton.errors import ConfigErrors
from hekaton.rules import check, layout, rules

ON = "[lr_scheduler]\nwarmup_steps = 0\n[checkpoint]\nenable = true\n"


@pytest.fixture(autouse=True)
def without_building(monkeypatch):
    """The model of these tests cannot be built."""
    others = [rule for rule in rules.RULES if rule is not layout.plan_can_be_carried_out]
    monkeypatch.setattr(rules, "RULES", others)


@pytest.fixture
def violations(load_run):
    def violations(toml: str, *, world_size: int | None = 1, **values: object) -> list[str]:
        """:param values: fields of [checkpoint] to set past their marks."""
        loaded = load_run(toml)
        section = loaded.config.checkpoint.model_copy(update=values)
        config = loaded.config.model_copy(update={"checkpoint": section})
        with pytest.raises(ConfigErrors) as caught:
            check(dataclasses.replace(loaded, config=config), world_size=world_size, device_type="cpu")
        return [str(problem) for problem in caught.value.problems]

    return violations


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            'export_dtype = "bfloat16"',
            'checkpoint.export_dtype = "bfloat16" is for a model that is saved alone, and the last step is saved '
            "with everything\n  from: run.toml, line 5\n  add checkpoint.last_save_model_only = true",
        ),
        (
            "create_seed_checkpoint = true\nload_only = true",
            "checkpoint.create_seed_checkpoint saves the initial weights, and checkpoint.load_only saves nothing"
            "\n  from: run.toml, line 5; run.toml, line 6\n  leave out one of the two",
        ),
        (
            'create_seed_checkpoint = true\ninitial_load_path = "there"',
            "checkpoint.create_seed_checkpoint saves the initial weights, and checkpoint.initial_load_path "
            "replaces them\n  from: run.toml, line 5; run.toml, line 6\n  leave out one of the two",
        ),
        (
            "create_seed_checkpoint = true\nload_step = 4",
            "checkpoint.create_seed_checkpoint saves the initial weights, and checkpoint.load_step replaces "
            "them\n  from: run.toml, line 5; run.toml, line 6\n  leave out one of the two",
        ),
        (
            'exclude_from_loading = ["model", "optimizer", "lr_scheduler", "dataloader"]',
            "checkpoint.exclude_from_loading names every part: nothing is left to load\n  from: run.toml, line 5"
            "\n  to start from step 0, choose another job.dump_folder or checkpoint.folder",
        ),
        (
            'initial_load_path = "there"\nexclude_from_loading = ["model"]',
            "checkpoint.initial_load_path is set for the model, and checkpoint.exclude_from_loading leaves the "
            "model out\n  from: run.toml, line 5; run.toml, line 6\n  take "
            '"model" out of checkpoint.exclude_from_loading, or set checkpoint.initial_load_model_only = false',
        ),
        *(
            (
                f'initial_load_path = "{path}"',
                f"checkpoint.initial_load_path = '{path}' is in the run's own checkpoint folder "
                "'outputs/checkpoint', and is loaded only while that has no checkpoint\n  from: run.toml, line 5\n"
                "  to resume from a step of this run, set checkpoint.load_step; to start another run from it, "
                "choose another job.dump_folder",
            )
            for path in ("outputs/checkpoint/step-3", "./outputs/checkpoint", "other/../outputs/checkpoint/")
        ),
    ],
)
def test_conflicting_options_are_rejected(violations, toml, message):
    assert violations(f"{ON}{toml}\n") == [message]


def test_accepted_changes_are_of_a_section_the_model_or_the_rest_of_a_run(violations, load_run):
    (wrong,) = violations(f'{ON}accept_changes = ["model.rope_theta", "modle.rope_theta"]\n')
    assert wrong.startswith(
        "checkpoint.accept_changes names 'modle.rope_theta', which is no value of this run\n"
        "  from: run.toml, line 5\n  did you mean 'model.rope_theta'?"
    )
    right = '"optimizer.name", "training data", "validation data \'web\'", "version of torch"'
    assert check(load_run(f"{ON}accept_changes = [{right}]\n"), world_size=1, device_type="cpu") == ()


def test_a_seed_needs_checkpoints_to_be_enabled(violations):
    assert violations("[checkpoint]\ncreate_seed_checkpoint = true\n") == [
        "checkpoint.create_seed_checkpoint saves a checkpoint, and checkpoint.enable is false\n"
        "  from: run.toml, line 2\n  add --checkpoint.enable"
    ]


def test_a_seed_checkpoint_needs_one_process(violations, load_run):
    seed = f"{ON}create_seed_checkpoint = true\n"
    assert violations(seed, world_size=4) == [
        "checkpoint.create_seed_checkpoint is the work of one process; this run has 4\n"
        "  from: run.toml, line 5\n"
        "  start one, with every degree of parallelism 1: the checkpoint loads under any layout"
    ]
    assert check(load_run(seed), world_size=1, device_type="cpu") == ()


def test_hugging_face_checkpoints_hold_the_model_only(violations):
    assert violations(f"{ON}last_save_in_hf = true\n")[0] == (
        "checkpoint.last_save_in_hf = true is for a model that is saved alone, and the last step is saved with "
        "everything\n  from: run.toml, line 5\n  add checkpoint.last_save_model_only = true"
    )
    wrong = f'{ON}initial_load_path = "there"\ninitial_load_model_only = false\ninitial_load_in_hf = true\n'
    assert violations(wrong)[0] == (
        "checkpoint.initial_load_model_only = false asks for optimizer and step, and a Hugging Face checkpoint "
        "holds the model only\n  from: run.toml, line 6; run.toml, line 7\n"
        "  leave checkpoint.initial_load_model_only at true"
    )


IN_HF = 'initial_load_path = "there"\ninitial_load_in_hf = true\n'
OUT_IN_HF = "last_save_model_only = true\nlast_save_in_hf = true\n"


@pytest.mark.parametrize(("toml", "field"), [(IN_HF, "initial_load_in_hf"), (OUT_IN_HF, "last_save_in_hf")])
def test_a_model_without_an_adapter_is_rejected(violations, load_run, toml, field):
    """Neither adapters nor formats are installed here."""
    assert violations(f"{ON}{toml}") == [
        f"checkpoint.{field} = true: no plugin says what model 'llama3' is in the layout of Hugging Face\n"
        "  from: run.toml, line 6\n  there are no adapters",
        f"checkpoint.{field} = true: no plugin reads and writes it\n"
        "  from: run.toml, line 6\n  install hekaton-hf",
    ]
    check(
        load_run(f"{ON}enable = false\n{toml}".replace("enable = true\n", "")),
        world_size=1,
        device_type="cpu",
    )


def test_hugging_face_checkpoints_behind_a_url_are_rejected(violations):
    url = 'folder = "memory://run"\ninitial_load_path = "memory://hf"\ninitial_load_in_hf = true\n'
    found = violations(f"{ON}{url}{OUT_IN_HF}")
    assert (
        "checkpoint.initial_load_in_hf reads from the disk, and initial_load_path = 'memory://hf' is a URL\n"
        "  from: run.toml, line 6\n  copy it to the disk, or convert it: hekaton convert from-hf"
    ) in found
    assert (
        "checkpoint.last_save_in_hf writes to the disk, and folder = 'memory://run' is a URL\n"
        "  from: run.toml, line 9; run.toml, line 5\n"
        "  convert the last step afterwards: hekaton convert to-hf"
    ) in found


def test_all_violations_are_reported_together(violations):
    found = violations(
        f'{ON}create_seed_checkpoint = true\nload_only = true\ninitial_load_path = "outputs/checkpoint"\n',
        world_size=2,
    )
    assert len(found) == 4


@pytest.mark.parametrize(
    "toml",
    [
        'initial_load_path = "outputs/checkpoints-of-another"',
        'initial_load_path = "memory://bucket/step-3"\ninitial_load_model_only = false',
        'initial_load_path = "there"\nexclude_from_loading = ["model"]\ninitial_load_model_only = false',
        'last_save_model_only = true\nexport_dtype = "float16"',
        'exclude_from_loading = ["optimizer", "lr_scheduler", "dataloader"]',
    ],
)
def test_compatible_options_are_accepted(load_run, toml):
    assert check(load_run(f"{ON}{toml}\n"), world_size=1, device_type="cpu") == ()


def test_a_link_to_the_runs_own_folder_is_detected(violations):
    Path("outputs/checkpoint").mkdir(parents=True)
    Path("link").symlink_to("outputs")
    (message,) = violations(f'{ON}initial_load_path = "link/checkpoint/step-1"\n')
    assert message.startswith("checkpoint.initial_load_path = 'link/checkpoint/step-1' is in the run's own")


def test_options_without_effect_under_load_only_give_a_notice(load_run):
    toml = f'{ON}load_only = true\nlast_save_model_only = true\nexport_dtype = "float16"\ninterval = 3\n'
    assert check(load_run(toml), world_size=1, device_type="cpu") == (
        "checkpoint.interval, checkpoint.last_save_model_only, checkpoint.export_dtype: no effect: "
        "checkpoint.load_only saves nothing",
    )


def test_pinned_memory_without_cuda_gives_a_notice(load_run):
    loaded = load_run(f'{ON}async_mode = "async_with_pinned_mem"\n')
    assert check(loaded, world_size=1, device_type="cpu") == (
        'checkpoint.async_mode = "async_with_pinned_mem" is the same as "async" on cpu: pinned memory is for '
        "copies from CUDA",
    )
    assert check(loaded, world_size=1, device_type="cuda") == ()


def test_options_of_initial_loading_without_a_path_give_a_notice(load_run):
    assert load_run(f"{ON}initial_load_model_only = false\n").notices == (
        "checkpoint.initial_load_model_only (run.toml, line 5): no effect: it needs "
        "checkpoint.initial_load_path",
    )
