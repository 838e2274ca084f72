"""Nothing that a user sets is without effect in silence."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("toml", "notice"),
    [
        (
            '[compile]\nbackend = "eager"\n',
            "compile.backend (run.toml, line 2): no effect: compile.enable is false",
        ),
        (
            '[compile]\nbackend = "eager"\ncomponents = ["loss"]\n',
            (
                "compile.components (run.toml, line 3), compile.backend (run.toml, line 2): no effect: "
                "compile.enable is false"
            ),
        ),
        (
            "[checkpoint]\ninterval = 3\n",
            "checkpoint.interval (run.toml, line 2): no effect: checkpoint.enable is false",
        ),
        (
            "[checkpoint]\nload_step = 3\n",
            "checkpoint.load_step (run.toml, line 2): no effect: checkpoint.enable is false",
        ),
        (
            '[validation]\nfreq = 3\ndataset = "unheard of"\n',
            (
                "validation.dataset (run.toml, line 3), validation.freq (run.toml, line 2): no effect: "
                "validation.enable is false"
            ),
        ),
        (
            "[validation.dataloader]\nnum_workers = 3\n",
            ("validation.dataloader.num_workers (run.toml, line 2): no effect: validation.enable is false"),
        ),
        (
            "[profiling]\nprofiler_active = 3\n",
            (
                "profiling.profiler_active (run.toml, line 2): no effect: it needs "
                "profiling.enable_profiling = true"
            ),
        ),
        (
            "[profiling]\nprofile_freq = 30\n",
            (
                "profiling.profile_freq (run.toml, line 2): no effect: it needs "
                "profiling.enable_profiling = true or profiling.enable_memory_snapshot = true"
            ),
        ),
        (
            '[activation_checkpoint]\nmode = "full"\nselective_ac_option = "3"\n',
            (
                "activation_checkpoint.selective_ac_option (run.toml, line 3): no effect: it needs "
                'activation_checkpoint.mode = "selective"'
            ),
        ),
        (
            '[activation_checkpoint]\nmode = "none"\nearly_stop = true\n',
            (
                "activation_checkpoint.early_stop (run.toml, line 3): no effect: it needs "
                'activation_checkpoint.mode = "full" or "selective"'
            ),
        ),
        (
            "[debug]\ndeterministic_warn_only = true\n",
            (
                "debug.deterministic_warn_only (run.toml, line 2): no effect: it needs "
                "debug.deterministic = true"
            ),
        ),
        (
            "[training.dataloader]\nprefetch_factor = 2\n",
            (
                "training.dataloader.prefetch_factor (run.toml, line 2): no effect: it needs "
                "training.dataloader.num_workers above 0"
            ),
        ),
        (
            "[training.dataloader]\npersistent_workers = true\n",
            (
                "training.dataloader.persistent_workers (run.toml, line 2): no effect: workers live as "
                "long as the run in any case"
            ),
        ),
        (
            "[checkpoint]\nenable_ft_dataloader_checkpoints = false\n",
            (
                "checkpoint.enable_ft_dataloader_checkpoints (run.toml, line 2): no effect: it belongs "
                "to fault tolerance, which is not available yet"
            ),
        ),
        (
            '[experimental]\ncustom_import = "mine"\n',
            (
                "experimental.custom_import (run.toml, line 2): no effect: name the module in "
                '[plugins] load = ["my_module"]'
            ),
        ),
        (
            '[job]\ncustom_config_module = "mine"\n',
            (
                "job.custom_config_module (run.toml, line 2): no effect: name modules with sections of "
                'their own in [plugins] load = ["my_module"]'
            ),
        ),
        (
            '[job]\nconfig_file = "mine"\n',
            "job.config_file has no effect in a file (run.toml, line 2); give it as a flag",
        ),
        (
            '[model]\ntokenizer_path = "there"\n',
            ("model.tokenizer_path is now model.hf_assets_path (run.toml, line 2); its value is used there"),
        ),
        (
            '[model]\ntokenizer_path = "there"\nhf_assets_path = "here"\n',
            (
                "model.tokenizer_path is now model.hf_assets_path (run.toml, line 2), which is set as "
                "well and takes precedence"
            ),
        ),
        (
            '[parallelism]\npipeline_parallel_schedule = "GPipe"\n',
            (
                "parallelism.pipeline_parallel_schedule (run.toml, line 2): no effect: it needs "
                "parallelism.pipeline_parallel_degree above 1"
            ),
        ),
        (
            '[quantize.linear.float8]\nfilter_fqns = ["output"]\n',
            (
                "quantize.linear.float8.filter_fqns (run.toml, line 2): no effect: it belongs to the "
                "converter 'quantize.linear.float8', which comes with hekaton-float8"
            ),
        ),
        (
            "[fault_tolerance]\nreplica_id = 1\n",
            ("fault_tolerance.replica_id (run.toml, line 2): no effect: fault_tolerance.enable is false"),
        ),
        (
            "[halves]\ntimes = 2\n",
            "[halves] (run.toml, line 2): no effect: the run does not use the converter 'halves'",
        ),
        (  # that no field names its encoder does not mean that it is used
            "[pages]\ntimes = 2\n",
            "[pages] (run.toml, line 2): no effect: the run does not use the dataset 'pages'",
        ),
    ],
)
def test_a_notice_for_what_has_no_effect(load_run, toml, notice):
    assert load_run(toml).notices == (notice,)


@pytest.mark.parametrize(
    "toml",
    [
        '[compile]\nenable = true\nbackend = "eager"\n',
        '[compile]\nbackend = "inductor"\n',
        "[profiling]\nenable_memory_snapshot = true\nprofile_freq = 30\n",
        '[activation_checkpoint]\nmode = "selective"\nselective_ac_option = "3"\n',
        "[debug]\ndeterministic = true\ndeterministic_warn_only = true\n",
        "[training.dataloader]\nnum_workers = 1\nprefetch_factor = 2\n",
        "[checkpoint]\nenable = true\nload_step = 3\n",
        '[model]\nconverters = ["halves"]\n[halves]\ntimes = 2\n',
        '[training]\ndataset = "pages"\n[pages]\ntimes = 2\n',
    ],
)
def test_no_notice_where_there_is_an_effect_or_nothing_differs(load_run, toml):
    assert load_run(toml).notices == ()


def test_a_renamed_field_gives_its_value_to_the_new_one(load_run):
    loaded = load_run('[model]\ntokenizer_path = "there"\n')
    assert loaded.config.model.hf_assets_path == "there"
    assert loaded.config.model.tokenizer_path is None
    assert loaded.origins["model.hf_assets_path"] == "run.toml, line 2"


def test_the_new_name_of_a_field_takes_precedence(load_run):
    loaded = load_run('[model]\ntokenizer_path = "there"\nhf_assets_path = "here"\n')
    assert loaded.config.model.hf_assets_path == "here"


def test_a_renamed_field_as_a_flag(load_run):
    loaded = load_run("[model]\n", "--model.tokenizer_path", "there")
    assert loaded.config.model.hf_assets_path == "there"
    assert loaded.origins["model.hf_assets_path"] == "--model.tokenizer_path"


@pytest.mark.parametrize(
    "toml",
    [
        '[training]\ndataset = "mixture"\n[[mixture.sources]]\ndataset = "pages"\n',
        '[validation]\nenable = true\n[[validation.sets]]\ndataset = "pages"\n',
    ],
)
def test_the_section_of_a_source_or_a_set_has_an_effect(load_run, toml):
    notices = load_run(f"{toml}[pages]\ntimes = 2\n").notices
    assert not [notice for notice in notices if "pages" in notice]
