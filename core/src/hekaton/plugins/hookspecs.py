"""Every hook of hekaton.

Contribution hooks return lists of records from :mod:`hekaton.contributions`; a run selects among them by
name, so the order of installation never matters. Lifecycle hooks return nothing and are called a few times
per step at most, never per microbatch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from hekaton.contributions import (
    Check,
    CheckpointFormat,
    Command,
    ContextParallel,
    Converter,
    Dataset,
    Dispatcher,
    Encoder,
    Evaluation,
    HFAdapter,
    IdentitySubject,
    Logger,
    LRSchedule,
    Model,
    Objective,
    Optimizer,
    Order,
    ParallelStyle,
    RowMaker,
    Section,
    Tokenizer,
)
from hekaton.urls import UrlPath

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.control import RunControl

hookspec = pluggy.HookspecMarker("hekaton")


@hookspec
def hekaton_models() -> list[Model]:  # type: ignore[empty-body]
    """Contribute models, which a run selects with ``[model] name``.

    :returns: one record per model; ``spec`` loads to a :class:`hekaton.spec.TrainSpec`. A model that reads a
        section of its own names it in ``section`` and receives it through ``TrainSpec.configure``.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_llama3`` contributes ``llama3``.
    """


@hookspec
def hekaton_parallel_styles() -> list[ParallelStyle]:  # type: ignore[empty-body]
    """Contribute styles for parallel plans: what tensor and sequence parallel do to a module.

    :returns: one record per style. ``build(section, context)`` is called once for each module that a plan
        gives the style to, and returns a :class:`torch.distributed.tensor.parallel.ParallelStyle`. Between
        the modules of a plan activations are plain tensors, (batch, seq, dim); under sequence parallel each
        rank holds its part of the sequence.
    :raises PluginError: (by the caller) when two plugins contribute the same style.

    Example: ``hekaton_parallel`` contributes ``colwise``, ``rowwise``, ``sequence_norm``.
    """


@hookspec
def hekaton_context_parallel() -> list[ContextParallel]:  # type: ignore[empty-body]
    """Contribute context-parallel strategies, which a run selects with ``[parallelism]
    context_parallel_strategy``.

    :returns: one record per strategy. ``build(section, group)`` returns an object that says in which order
        ranks hold the sequence, and replaces the forward of the inner attentions that a plan names.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_parallel`` contributes ``allgather``, ``ring`` and ``ulysses``.
    """


@hookspec
def hekaton_dispatchers() -> list[Dispatcher]:  # type: ignore[empty-body]
    """Contribute ways in which tokens reach experts on other ranks, which a run selects with ``[parallelism]
    expert_dispatcher``.

    :returns: one record per dispatcher. ``build(section, group)`` is given the groups of expert parallel and
        of expert-tensor parallel, and returns a callable that takes this rank's tokens, the experts that each
        chose, their weights and a function that applies this rank's experts to rows sorted by expert, and
        returns the weighted sum of each token's results.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_parallel`` contributes ``alltoall``.
    """


@hookspec
def hekaton_converters() -> list[Converter]:  # type: ignore[empty-body]
    """Contribute model converters, which a run enables by name, in order, with ``[model] converters``.

    A converter changes the draft of a model, before it is parallelised: the module on the meta device (it
    swaps linear layers, adds parameters), entries and styles of its plan, its init table, which parameters
    are trained, and how an export merges what was added.

    :returns: one record per converter. ``build(section, dims)`` is called with the converter's own
        configuration section and the :class:`hekaton.mesh.ParallelDims` of the run, and must return an object
        with ``convert(draft)``, which returns the :class:`hekaton.draft.Draft`, changed; an optional
        ``after_step(model_parts)`` runs before the first and after each optimizer step.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_lora`` contributes ``lora``.
    """


@hookspec
def hekaton_sections() -> list[Section]:  # type: ignore[empty-body]
    """Contribute TOML sections that a plugin owns.

    The section becomes part of the configuration: it is checked as strictly as the core's, has flags
    (``--PATH.field value``), appears in ``hekaton config show`` and in the JSON schema.

    Example: ``hekaton_lora`` contributes ``lora``, ``hekaton_float8`` ``quantize.linear.float8``.

    :returns: one record per section, named by its TOML path.
    :raises PluginError: (by the caller) when two plugins contribute the same path, or one that the core owns.
    """


@hookspec
def hekaton_datasets() -> list[Dataset]:  # type: ignore[empty-body]
    """Contribute datasets, which a run selects with ``[training] dataset`` or ``[validation] dataset``.

    :returns: one record per dataset. ``build(section, path)`` returns a sized, randomly accessible
        collection of documents; order, packing, sharding and resumption are the core's.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``python_stdlib``, ``hekaton_hf`` contributes ``text``.
    """


@hookspec
def hekaton_orders() -> list[Order]:  # type: ignore[empty-body]
    """Contribute orders of documents, which a run selects with ``[training] order``.

    :returns: one record per order. ``build(section, documents, seed)`` returns an object whose ``at(places)``
        says which documents stand at places of an endless sequence, each once in an epoch. Row i of a batch
        of B rows reads the places i, B + i, 2B + i, and so on.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``shuffled`` and ``sequential``.
    """


@hookspec
def hekaton_encoders() -> list[Encoder]:  # type: ignore[empty-body]
    """Contribute encoders: documents of some kind to token ids, and which of them are targets.

    :returns: one record per encoder, which datasets name (``Dataset(..., encoder="text")``).
        ``build(section, tokenizer)`` returns an object that cuts a document into parts and encodes parts.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``text``, which asks the tokenizer, and ``ids``, for documents that are ids.
    """


@hookspec
def hekaton_row_makers() -> list[RowMaker]:  # type: ignore[empty-body]
    """Contribute row makers, which a run selects with ``[training] packing``.

    :returns: one record per row maker. ``build(section, seq_len)`` returns an object that takes tokens off a
        feed of documents and writes one row, says what the work of a run is counted in, and how many numbers
        its cursor has.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``documents``, ``concat``, ``best_fit`` and ``one_per_row``.
    """


@hookspec
def hekaton_tokenizers() -> list[Tokenizer]:  # type: ignore[empty-body]
    """Contribute tokenizers, which a run selects with ``[model] tokenizer``.

    :returns: one record per tokenizer. ``build(section, path)`` is given ``[model] hf_assets_path``.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``byte``, ``hekaton_hf`` contributes ``hf``.
    """


@hookspec
def hekaton_objectives() -> list[Objective]:  # type: ignore[empty-body]
    """Contribute training objectives, which a model's ``TrainSpec.objective`` names.

    :returns: one record per objective. ``build(section, context)`` is given device, precision, degrees and
        the model's configuration, and returns an object that declares its inputs and targets, prepares them
        from a batch, and gives each term of the loss as a sum and a count.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``next_token``.
    """


@hookspec
def hekaton_optimizers() -> list[Optimizer]:  # type: ignore[empty-body]
    """Contribute optimizers, which a run selects with ``[optimizer] name``.

    :returns: one record per optimizer. ``build(section, settings, groups)`` is given groups of named
        parameters with their roles, and returns a :class:`torch.optim.Optimizer` or several; parameters may
        be DTensors. What it keeps of a parameter is saved: of the parameter's placements, or whole.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``AdamW``, ``Adam`` and ``Muon``, ``hekaton_torchao`` ``AdamW8bit``.
    """


@hookspec
def hekaton_lr_schedules() -> list[LRSchedule]:  # type: ignore[empty-body]
    """Contribute learning-rate schedules, which a run selects with ``[lr_scheduler] name``.

    :returns: one record per schedule. ``build(section, settings, training_steps)`` returns a pure function
        from the number of optimizer steps done to the factor on the learning rate.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``warmup_stable_decay``.
    """


@hookspec
def hekaton_loggers() -> list[Logger]:  # type: ignore[empty-body]
    """Contribute metric loggers, which a run enables by name with ``[metrics] loggers``.

    :returns: one record per logger. ``build(section, folder)`` is called on the ranks that log. A logger that
        raises is reported once and left out from then on; only what it raises when it is built ends the run.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: the core contributes ``jsonl``, ``hekaton_tensorboard`` ``tensorboard``.
    """


@hookspec
def hekaton_hf_adapters() -> list[HFAdapter]:  # type: ignore[empty-body]
    """Contribute what a model is called in the layout of Hugging Face, for its conversion in both directions.

    :returns: one record per model, with the model's name. Of the weights it has one table, from which both
        directions follow; see :class:`hekaton.weights.table.WeightTable`.
    :raises PluginError: (by the caller) when two plugins contribute an adapter of the same model.

    Example: ``hekaton_llama3`` contributes that of ``llama3``.
    """


@hookspec
def hekaton_checkpoint_formats() -> list[CheckpointFormat]:  # type: ignore[empty-body]
    """Contribute external formats, in which weights are read and written.

    :returns: one record per format. ``build(section)`` returns an object that opens a folder as named
        tensors, none of them read yet, and writes named tensors into a folder, one at a time.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_hf`` contributes ``hf``, ``hekaton_lora`` contributes ``peft``.
    """


@hookspec
def hekaton_commands() -> list[Command]:  # type: ignore[empty-body]
    """Contribute verbs of the ``hekaton`` command line.

    :returns: one record per verb. ``run(arguments)`` returns the exit status and raises a
        :class:`hekaton.errors.HekatonError` for what the user can cure.
    :raises PluginError: (by the caller) when two plugins contribute the same verb.

    Example: the core contributes ``train``, ``config`` and ``plugins``.
    """


@hookspec
def hekaton_checks() -> list[Check]:  # type: ignore[empty-body]
    """Contribute rules between sections, which every run is checked by before anything is built.

    :returns: one record per rule. ``rule(run)`` is given a :class:`hekaton.rules.run.Run` and yields
        violations (``run.violation(message, "section.field", hint=...)``) and, as plain strings, notices. It
        yields nothing in a run that its plugin has no part in.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_lora`` says when frozen weights are random ones.
    """


@hookspec
def hekaton_evaluations() -> list[Evaluation]:  # type: ignore[empty-body]
    """Contribute judgements of a run's model between its steps, on the run's own layout. A run has one where
    the section that its record names is set.

    :returns: one record per evaluation. ``build(section, assembled)`` is called on every process before the
        first step, and returns an object with ``due(step)``, asked after every step, and a call that gives
        metrics. Modes of modules are as they were afterwards; the trainer keeps the random generators.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: ``hekaton_eval`` contributes ``lm_eval``, tasks of the lm-evaluation-harness.
    """


@hookspec
def hekaton_identity_subjects() -> list[IdentitySubject]:  # type: ignore[empty-body]
    """Contribute what the processes of a run must have in common beside what hekaton compares, such as the
    image of a container or a setting of the network; a resume compares it with the checkpoint.

    :returns: one record per subject. ``build(section, config)`` returns names and values, which must be equal
        on all processes: a run in which they are not ends before its first step, and says which process has
        which value.
    :raises PluginError: (by the caller) when two plugins contribute the same name.

    Example: a plugin compares the image that each machine runs::

        def image(section, config):
            return {"image": os.environ.get("IMAGE", "none")}

        @hookimpl
        def hekaton_identity_subjects():
            return [IdentitySubject("container", build=Ref("my_plugin:image"), at_resume="notice")]
    """


@hookspec
def hekaton_run_started(config: "JobConfig", step: int, control: "RunControl") -> None:
    """Called on every rank when the model is built and loaded, before the first step.

    :param config: the resolved configuration.
    :param step: the number of steps already done, 0 for a fresh run.
    :param control: what asks the run to save or to stop, at any time: a signal handler may keep it.

    Example: a plugin stops a run when a file appears::

        @hookimpl
        def hekaton_run_started(control):
            def watch():
                while not Path("stop").exists():
                    time.sleep(5)
                control.ask(save=True, stop=True, reason="there is a file 'stop'")

            threading.Thread(target=watch, daemon=True).start()
    """


@hookspec
def hekaton_step_ended(step: int, metrics: Mapping[str, float], control: "RunControl") -> None:
    """Called on every rank after each optimizer step.

    :param step: the number of steps done, from 1.
    :param metrics: the numbers of this step where it was logged, and ``validation_loss`` where it was
        validated; empty otherwise.
    :param control: ``control.ask(stop=True, save=True, reason=...)``, on any rank, ends the run after a save:
        after this step on one process, after the next on several.

    Example: a plugin stops a run at a loss::

        @hookimpl
        def hekaton_step_ended(step, metrics, control):
            if metrics.get("loss", math.inf) < 2.0:
                control.ask(stop=True, save=True, reason="the loss is below 2")
    """


@hookspec
def hekaton_checkpoint_saved(step: int, folder: Path | UrlPath) -> None:
    """Called on every rank when the checkpoint of ``step`` is whole on disk; of one saved in the background
    before a later step begins, or at the end of the run.

    :param step: the number of steps done when it was taken.
    :param folder: the step's own folder; ``str(folder)`` is its path, or its URL where ``checkpoint.folder``
        is one.

    Example: a plugin lists steps for a program that evaluates them::

        @hookimpl
        def hekaton_checkpoint_saved(step, folder):
            if int(os.environ.get("RANK", 0)) == 0:
                with open("to_evaluate.txt", "a") as file:
                    print(step, folder, file=file)
    """


@hookspec
def hekaton_run_ended(step: int, error: BaseException | None) -> None:
    """Called on every rank when the run ends.

    :param step: the number of steps done.
    :param error: what ended the run early, ``None`` when it reached its last step.

    Example: a plugin writes how the run ended::

        @hookimpl
        def hekaton_run_ended(step, error):
            Path("ended.txt").write_text(f"step {step}: {error or 'done'}")
    """
