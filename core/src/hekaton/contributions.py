"""What a plugin returns from its hooks: frozen records that name heavy code without importing it.

A plugin is a light module (standard library, this module and pydantic only), found through the entry-point
group ``hekaton``::

    from hekaton.contributions import Model, Ref, hookimpl

    HEKATON_API = ">=1,<2"

    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("tiny.spec:train_spec"), summary="Two layers, for laptops")]

Everything that a record names with a :class:`Ref` is a callable which hekaton calls with ``section`` first:
the component's own configuration section (an instance of the schema of the :class:`Section` that the record
names), or ``None`` where it has none.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pluggy

from hekaton.errors import HekatonError, PluginError

API_VERSION = "1.0"
"""Version of the plugin API, MAJOR.MINOR. A plugin module states the range that it was built for as
``HEKATON_API``. What one minor version deprecates works in the next one too, and goes with the one after."""

hookimpl = pluggy.HookimplMarker("hekaton")

OF_EVALUATION = "evaluation/"
"""What the metrics of evaluations begin with."""

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True, slots=True)
class Ref:
    """An object by name, ``module:attribute``, imported only when :meth:`load` is called."""

    target: str

    def __post_init__(self) -> None:
        if not _TARGET.fullmatch(self.target):
            raise PluginError(f"Ref({self.target!r}) is not of the form 'module:attribute'")

    def load(self) -> Any:
        """Import and return the object.

        :raises PluginError: when the module cannot be imported, whatever it raises, or has no such attribute.
        """
        module_name, _, attributes = self.target.partition(":")
        try:
            value = importlib.import_module(module_name)
        except HekatonError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as e:  # SystemExit, and what others derive from it
            raise PluginError(
                f"cannot import '{self.target}': {type(e).__name__}: {e}",
                hint=f"python -c 'import {module_name}' shows where",
            ) from e
        for attribute in attributes.split("."):
            try:
                value = getattr(value, attribute)
            except AttributeError as e:
                raise PluginError(f"cannot load '{self.target}': {e}") from e
        return value

    def function(self) -> Callable[..., Any]:
        """Import and return what is to be called.

        :raises PluginError: as :meth:`load`, and for an object that cannot be called.
        """
        value = self.load()
        if not callable(value):
            raise PluginError(f"'{self.target}' cannot be called: it is of type {type(value).__name__}")
        return cast("Callable[..., Any]", value)


@dataclass(frozen=True)
class Contribution:
    """What every record has: the name by which a run selects it, and a line for ``hekaton plugins``.

    :param needs: requirements as pip takes them (``"torchao>=0.18"``), where its distribution does without
        them: while they are not met it is listed as unavailable, and a run that names it is refused.
    """

    name: str
    summary: str = field(default="", kw_only=True)
    needs: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, kw_only=True)
class Component(Contribution):
    """A contribution that may read a configuration section of its own.

    ``section`` is the TOML path of a section contributed through ``hekaton_sections``; left empty, the
    section with the component's own name is taken if there is one.
    """

    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Model(Component):
    """A model for ``[model] name``. ``spec`` loads to a :class:`hekaton.spec.TrainSpec`."""

    spec: Ref


@dataclass(frozen=True, kw_only=True)
class Section(Contribution):
    """A TOML section, named by its path (``"quantize.linear.float8"``).

    ``schema`` loads to a subclass of :class:`hekaton.config.SectionModel`, in a module that is light to
    import.

    With ``joins``, the path of a section of the core (``"validation"``), there is no section of the record's
    name: the fields of the schema are further fields of that section.
    """

    schema: Ref
    joins: str = ""


@dataclass(frozen=True, kw_only=True)
class ParallelStyle(Component):
    """A style for the ``tensor`` entries of parallel plans.

    ``build(section, context)`` is given a :class:`hekaton.parallel.tensor.TensorContext` and returns a
    :class:`torch.distributed.tensor.parallel.ParallelStyle`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class ContextParallel(Component):
    """A strategy for ``[parallelism] context_parallel_strategy``.

    ``build(section, group)`` is given a :class:`hekaton.parallel.context.ContextGroup` and returns a
    :class:`hekaton.parallel.context.ContextStrategy`.

    ``supports``: what it can do beyond causal attention inside documents, in the words in which inner
    attentions say what they require: ``bidirectional``, ``window``, ``chunks``, ``sinks``, ``softcap``, or
    others.

    ``requires``: what an attention backend that a run names must support for it: ``positions`` where the
    strategy calls the inner attention with ``queries_at`` and ``keys_at``. ``None`` where it computes
    attention itself, so that naming a backend would have no effect.
    """

    build: Ref
    supports: tuple[str, ...] = ()
    requires: tuple[str, ...] | None = ()


@dataclass(frozen=True, kw_only=True)
class Dispatcher(Component):
    """A way in which tokens reach experts on other ranks, for ``[parallelism] expert_dispatcher``.

    ``build(section, group)`` is given a :class:`hekaton.parallel.experts.ExpertGroup` and returns what layers
    of experts call, see ``hekaton_blocks.Dispatcher``.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Converter(Component):
    """A model converter for ``[model] converters``.

    ``build(section, dims)`` returns an object with ``convert(draft)`` and, where it needs one,
    ``after_step(model_parts)``; see :class:`hekaton.spec.ModelConverter`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Dataset(Component):
    """A dataset for ``[training] dataset``.

    ``build(section, path)`` is given ``dataset_path`` (``None`` when not set) and returns a
    :class:`hekaton.data.Documents`. ``encoder`` names what turns its documents into tokens.

    ``check(section, path, here=True)`` raises what ``build`` would, as far as little reading tells, for
    ``hekaton config check`` and before a run builds anything; with ``here=False``, of a run on other
    machines, it looks at no files. What it returns is asked whether it fits the run, where it is a
    :class:`hekaton.data.MadeByTokenizer` or a :class:`hekaton.data.ChecksRows`; the lines of a
    :class:`hekaton.data.HasNotices` are said.
    """

    build: Ref
    check: Ref | None = None
    encoder: str = "text"


@dataclass(frozen=True, kw_only=True)
class Order(Component):
    """An order of documents for ``[training] order``.

    ``build(section, documents, seed)`` is given their number and returns a
    :class:`hekaton.data.DocumentOrder`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Encoder(Component):
    """What turns the documents of a dataset into tokens; datasets name it.

    ``build(section, tokenizer)`` is given the run's tokenizer and returns a
    :class:`hekaton.data.DocumentEncoder`.

    ``check(section, tokenizer)`` raises what ``build`` would, as far as little work tells, before a run
    builds anything.

    ``gives``: what documents are encoded to. Row makers say what they take, and a run whose two differ is
    refused.
    """

    build: Ref
    check: Ref | None = None
    gives: str = "tokens"


@dataclass(frozen=True, kw_only=True)
class RowMaker(Component):
    """What makes documents into the rows of a batch, for ``[training] packing``.

    ``build(section, seq_len)`` returns a :class:`hekaton.data.row_makers.BatchRowMaker`.

    ``takes``: what its documents are encoded to, see :class:`Encoder`.
    """

    build: Ref
    takes: str = "tokens"


@dataclass(frozen=True, kw_only=True)
class Tokenizer(Component):
    """A tokenizer for ``[model] tokenizer``.

    ``build(section, path)`` is given ``hf_assets_path`` (``None`` when not set) and returns a
    :class:`hekaton.data.TextTokenizer`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Objective(Component):
    """What a model is trained for.

    ``build(section, context)`` is given a :class:`hekaton.objective.ObjectiveContext` and returns a
    :class:`hekaton.objective.TrainingObjective`.

    ``takes``: what the rows of its batches are made of, as row makers say it.
    """

    build: Ref
    takes: str = "tokens"


@dataclass(frozen=True, kw_only=True)
class Optimizer(Component):
    """An optimizer for ``[optimizer] name``.

    ``build(section, settings, groups)`` is given the ``[optimizer]`` section and the trained parameters of
    one model part, in :class:`hekaton.parameters.ParameterGroup` with names, roles, rates and decays. It
    returns a :class:`torch.optim.Optimizer`, or a list of several that share the parameters out.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class LRSchedule(Component):
    """A learning-rate schedule for ``[lr_scheduler] name``.

    ``build(section, settings, training_steps)`` is given the ``[lr_scheduler]`` section and the length of the
    run in steps, and returns a function from the number of steps done to the factor on ``optimizer.lr``.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Logger(Component):
    """A destination for metrics, for ``[metrics] loggers``.

    ``build(section, folder)`` is given the folder of this run's logs and returns an object with
    ``log(step, metrics)`` and ``close()``, and where it keeps what earlier runs logged ``resume(step)``; see
    :class:`hekaton.metrics.MetricLogger` and :class:`hekaton.metrics.ResumableLogger`.

    ``place``: the folder that it is given, ``"logs"`` for ``metrics.save_tb_folder``, or ``"run"`` for the
    run folder (``job.dump_folder``); with ``metrics.save_for_all_ranks`` a ``rank_N`` below it.
    """

    build: Ref
    place: Literal["logs", "run"] = "logs"


@dataclass(frozen=True, kw_only=True)
class HFAdapter(Contribution):
    """How a model is published in the layout of Hugging Face. Its ``name`` is the model's.

    ``table(config)`` returns the :class:`hekaton.weights.table.WeightTable` of a configuration of the model,
    ``write_config(config)`` the content of its ``config.json``, and ``read_config(content)`` the
    configuration that a ``config.json`` describes; for what the model cannot do it raises
    :class:`hekaton.errors.CheckpointError`. ``architectures`` are those that it reads; the first is the one
    that it writes.

    ``defaults`` are the values that transformers takes for keys which a ``config.json`` leaves out, or a
    function of its content that returns them; they are in what ``read_config`` is given. ``model_types`` are
    those of folders that name no architecture.
    """

    table: Ref
    write_config: Ref
    read_config: Ref
    architectures: tuple[str, ...]
    model_types: tuple[str, ...] = ()
    defaults: Mapping[str, Any] | Ref = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat(Component):
    """A format that weights come in from elsewhere, for ``hekaton convert from-NAME`` and ``to-NAME``.

    ``build(section)`` returns a :class:`hekaton.weights.format.WeightFormat`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class Check(Contribution):
    """A rule between sections. ``rule(run)`` is given a :class:`hekaton.rules.run.Run` and yields
    violations, and notices as plain strings; its module is light to import, since every run imports it."""

    rule: Ref


@dataclass(frozen=True, kw_only=True)
class Evaluation(Component):
    """A judgement of a run's model between its steps. A run has it where its section is set.

    ``build(section, assembled)`` is given what the run is made of, a :class:`hekaton.assembly.Assembled`,
    before the first step, and returns a :class:`hekaton.metrics.RunEvaluation`.
    """

    build: Ref


@dataclass(frozen=True, kw_only=True)
class IdentitySubject(Component):
    """Something more that the processes of a run must have in common, and that a resume compares.

    ``build(section, config)`` is given the resolved configuration and returns a mapping of names to values
    as JSON has them. It is called on every process, once the model is built and before it is loaded.

    ``at_resume`` says what a value that has changed since the checkpoint means: ``"nothing"``, a ``"notice"``
    with both values, or a ``"refusal"`` until ``checkpoint.accept_changes`` names it (``"NAME.key"``).
    """

    build: Ref
    at_resume: Literal["nothing", "notice", "refusal"] = "notice"


@dataclass(frozen=True, kw_only=True)
class Command(Contribution):
    """A verb of the ``hekaton`` command.

    ``run(arguments)`` is given the arguments after the verb and returns the exit status.
    """

    run: Ref
