"""Values beyond reason are refused by their types and by rules, and what a run needs is looked for by the check."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hekaton.errors import ConfigErrors
from hekaton.rules import check
from hekaton.testing import run_command


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[training]\nseq_len = 1_000_000_000\n", "must be less than or equal to 16777216, not 1000000000"),
        ("[training]\nglobal_batch_size = 1_000_000_000\n", "less than or equal to 1048576"),
        ("[training]\nlocal_batch_size = 1_000_000_000\n", "less than or equal to 1048576"),
        ("[validation]\nseq_len = 1_000_000_000\n", "less than or equal to 16777216"),
        ("[optimizer]\neps = 0\n", "must be greater than or equal to 1e-30, not 0"),
        ("[optimizer]\neps = 1e-46\n", "greater than or equal to 1e-30"),
        ("[optimizer]\nlr = 1e308\n", "less than or equal to 100"),
        ("[optimizer]\nweight_decay = 1e308\n", "less than or equal to 1000"),
        (
            "[training.dataloader]\nnum_workers = 1\nprefetch_factor = 100_000_000_000\n",
            "less than or equal to 1024",
        ),
        ("[training.dataloader]\nnum_workers = 1_000_000\n", "less than or equal to 1024"),
        ("[comm]\ninit_timeout_seconds = 1_000_000_000_000\n", "less than or equal to 31622400"),
        ("[parallelism]\ntensor_parallel_degree = 10_000_000\n", "less than or equal to 1048576"),
        ("[model.overrides]\nrope_theta = nan\n", "'rope_theta' must be a finite number"),
        ("[model.overrides]\nrope_theta = -inf\n", "'rope_theta' must be a finite number"),
    ],
)
def test_a_value_out_of_bounds_is_rejected(problems, toml, message):
    said = problems(toml)
    assert any(message in problem and "from: run.toml, line" in problem for problem in said), said


@pytest.fixture
def violations(load_run):
    def violations(toml: str, *, world_size: int | None = 1) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            check(load_run(toml), world_size=world_size, device_type="cpu")
        return [str(problem) for problem in caught.value.problems]

    return violations


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            "[training]\nseq_len = 1_000_000\nlocal_batch_size = 2_000\n",
            "a step of 2,000 rows of training.seq_len = 1,000,000 has 2,000,000,000 tokens, more than "
            "1,073,741,824\n  from: run.toml, line 3; run.toml, line 2\n"
            "  choose a batch of at most 1,073 rows",
        ),
        (
            "[training]\nseq_len = 2_048\nglobal_batch_size = 1_000_000\n",
            "a step of 1,000,000 rows of training.seq_len = 2,048 has 2,048,000,000 tokens",
        ),
        (
            "[validation]\nenable = true\nseq_len = 16_000_000\nlocal_batch_size = 100\n"
            'dataset = "c4_validation"\n',
            "validation.local_batch_size = 100 rows of validation.seq_len = 16,000,000 have 1,600,000,000",
        ),
        (
            "[optimizer]\nlr = 10\nweight_decay = 0.1\n",
            "optimizer.lr 10 × weight_decay 0.1 = 1: each step would flip the sign of weights\n"
            "  from: run.toml, line 2; run.toml, line 3",
        ),
    ],
)
def test_values_whose_product_is_too_large_are_rejected(violations, toml, message):
    said = violations(toml)
    assert any(problem.startswith(message) for problem in said), said


def test_overrides_that_make_a_model_impossible_are_rejected(violations):
    # A negative size: torch raises a RuntimeError.
    (said,) = violations("[model.overrides]\ndim = -8\n")
    assert said.startswith("llama3 debugmodel cannot be built with these overrides: RuntimeError: ")
    assert "from: run.toml, line 2" in said


def test_a_model_larger_than_memory_is_rejected(violations):
    # Two square layers in float32, each with its gradient: 16 bytes times dim², and a bit for the biases.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    dim = int((memory / 16) ** 0.5) + 1
    toml = f"[model.overrides]\ndim = {dim}\n"
    (said,) = violations(toml)
    assert f"has {2 * dim * dim + 2 * dim:,} parameters: they and their gradients take " in said
    assert "from: run.toml, line 2" in said


def test_memory_is_not_checked_for_a_run_on_another_machine(load_run):
    loaded = load_run("[lr_scheduler]\nwarmup_steps = 0\n[model.overrides]\ndim = 10_000_000\n")
    assert check(loaded, world_size=1, device_type="cpu", here=False) == ()
    assert check(loaded, world_size=8, device_type="cpu") == ()


def edited(plugin_file: Path, old: str, new: str) -> list[str]:
    """The flags that load a copy of the plugin with something else in it."""
    text = plugin_file.read_text()
    assert old in text
    copy = Path("other", plugin_file.name)
    copy.parent.mkdir()
    copy.write_text(text.replace(old, new))
    return ["--plugins.load", str(copy)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "layers.*.{weight,bias}",
            "layers.*.weight",
            "init table of llama3: no entry for layers.0.bias, layers.1.bias",
        ),
        ('block="layers.*"', 'block="blocks.*"', "blocks.*"),
    ],
)
def test_tables_are_checked_without_parallelism(plugin_file, old, new, message):
    # In a process of its own: a plugin of the same name is loaded in this one.
    done = run_command("config", "check", *edited(plugin_file, old, new))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
