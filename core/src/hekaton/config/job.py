"""The whole configuration: the core's sections, and those that plugins add."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import Field, create_model

from hekaton.config.base import CompatSection, Path, SectionModel, dotted, section_class
from hekaton.config.compat import (
    ExperimentalSection,
    FaultToleranceSection,
    MemoryEstimationSection,
    QuantizeSection,
)
from hekaton.config.sections import (
    ActivationCheckpointSection,
    CheckpointSection,
    CommSection,
    CompileSection,
    DebugSection,
    FaultSection,
    JobSection,
    LRSchedulerSection,
    MetricsSection,
    ModelSection,
    OptimizerSection,
    ParallelismSection,
    PluginsSection,
    ProfilingSection,
    TrainingSection,
    ValidationSection,
)
from hekaton.config.sections.run import LOGGER_SWITCHES
from hekaton.contributions import Section
from hekaton.errors import HekatonError, PluginError, choices_hint
from hekaton.plugins import Contributed, Plugins
from hekaton.plugins.packages import CONVERTERS, install_hint


class JobConfig(SectionModel):
    """A run, as its TOML files and flags describe it."""

    job: JobSection = Field(default_factory=JobSection)
    plugins: PluginsSection = Field(default_factory=PluginsSection)
    profiling: ProfilingSection = Field(default_factory=ProfilingSection)
    metrics: MetricsSection = Field(default_factory=MetricsSection)
    model: ModelSection = Field(default_factory=ModelSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    lr_scheduler: LRSchedulerSection = Field(default_factory=LRSchedulerSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    parallelism: ParallelismSection = Field(default_factory=ParallelismSection)
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    activation_checkpoint: ActivationCheckpointSection = Field(default_factory=ActivationCheckpointSection)
    compile: CompileSection = Field(default_factory=CompileSection)
    comm: CommSection = Field(default_factory=CommSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    fault: FaultSection = Field(default_factory=FaultSection)
    debug: DebugSection = Field(default_factory=DebugSection)
    quantize: QuantizeSection = Field(default_factory=QuantizeSection)
    memory_estimation: MemoryEstimationSection = Field(default_factory=MemoryEstimationSection)
    fault_tolerance: FaultToleranceSection = Field(default_factory=FaultToleranceSection)
    experimental: ExperimentalSection = Field(default_factory=ExperimentalSection)

    def section(self, path: str) -> SectionModel:
        """A section by its TOML path, a plugin's too (``"quantize.linear.float8"``).

        :raises KeyError: when there is none.
        """
        found: Any = self
        for name in path.split("."):
            if name not in type(found).model_fields or not isinstance(getattr(found, name), SectionModel):
                raise KeyError(path)
            found = getattr(found, name)
        return found  # type: ignore[no-any-return]

    def data_parallel_degree(self, world_size: int) -> int:
        """Number of ranks that read different rows of the batch; this imports torch."""
        from hekaton.mesh import ParallelDims

        return ParallelDims.of(self, world_size=world_size).dp

    def only_loads(self) -> bool:
        """Whether the run leaves the folder of the run that it loads from as it is."""
        return self.checkpoint.enable and self.checkpoint.load_only

    def logger_names(self) -> list[str]:
        """Every logger of the run, each once."""
        named = self.metrics.loggers
        if named is None:
            named = [] if self.only_loads() else ["jsonl"]
        switched = [name for name, field in LOGGER_SWITCHES.items() if getattr(self.metrics, field)]
        return list(dict.fromkeys([*named, *switched]))

    def expert_dispatcher(self) -> str:
        """Name of what brings tokens to experts on other ranks."""
        settings = self.parallelism
        of_backend = "alltoall" if settings.expert_parallel_comm_backend == "standard" else "deepep"
        return settings.expert_dispatcher or of_backend

    def context_parallel_strategy(self) -> str:
        """The strategy by name: the one set, or else the one that the 0.2-era ``rotate_method`` means."""
        settings = self.parallelism
        by_method = {"allgather": "allgather", "alltoall": "ring"}[settings.context_parallel_rotate_method]
        return settings.context_parallel_strategy or by_method

    def global_batch_size(self, world_size: int) -> int:
        """Rows of an optimizer step over all ranks."""
        training = self.training
        if training.global_batch_size == -1:
            return training.local_batch_size * self.data_parallel_degree(world_size)
        return training.global_batch_size


# A class that is made here has no source: pydantic would look for its docstrings through all loaded modules.
_NO_SOURCE = {"use_attribute_docstrings": False}


def config_class(plugins: Plugins) -> tuple[type[JobConfig], list[HekatonError]]:
    """:class:`JobConfig` with the sections of plugins added, and what is wrong with those that cannot be."""
    config: type[SectionModel] = JobConfig
    problems: list[HekatonError] = []
    # A section comes before those inside it, whoever contributes them.
    for path, contributed in sorted(plugins.all(Section).items()):
        try:
            what = f"section '{contributed.record.name}' of {contributed.plugin}"
            schema, joined = _schema(contributed, what), contributed.record.joins
            if joined:
                config = _joined(config, joined, schema, what)
            else:
                config = _extended(config, tuple(path.split(".")), schema, what)
        except HekatonError as e:
            cure = f"or leave the plugin out: HEKATON_DISABLE={contributed.plugin.name}"
            e.hint = f"{e.hint}\n{cure}" if e.hint else cure.removeprefix("or ")
            problems.append(e)
    return config, problems  # type: ignore[return-value]


def config_of(plugins: Plugins, content: Mapping[str, Any]) -> JobConfig:
    """The configuration that is written as tables, in a manifest for example; what is left out has its
    default.

    :raises ValidationError: of pydantic, for what it does not take.
    """
    config, _ = config_class(plugins)
    return config.model_validate_json(json.dumps(content), strict=True)


def _schema(contributed: Contributed[Section], what: str) -> type[SectionModel]:
    try:
        return schema_of(contributed.record)
    except PluginError as e:
        raise PluginError(f"{what}: {e.message}", hint=e.hint) from e


def schema_of(section: Section) -> type[SectionModel]:
    """The class of a plugin's section.

    :raises PluginError: for one that cannot be imported, or of which no configuration can be made.
    """
    schema = section.schema.load()
    if not (isinstance(schema, type) and issubclass(schema, SectionModel)):
        raise PluginError(f"its schema is no subclass of SectionModel but {schema!r}")
    required = [name for name, field in schema.model_fields.items() if field.is_required()]
    if required:
        raise PluginError(f"'{required[0]}' has no default", hint="every field of a section needs a default")
    try:
        schema()
    except Exception as e:  # of pydantic, and of what an author computes defaults with
        said = " ".join(str(e).split("\n\nFor further", 1)[0].split())
        raise PluginError(f"it cannot be made of its defaults: {type(e).__name__}: {said}") from e
    return schema


@lru_cache(maxsize=256)
def _extended(
    owner: type[SectionModel], path: Path, schema: type[SectionModel], what: str
) -> type[SectionModel]:
    """``owner`` with the section ``schema`` at ``path`` below it.

    Kept: a class of pydantic takes two milliseconds, and a process may load many configurations.
    """
    name, *rest = path
    field = owner.model_fields.get(name)
    there = section_class(field) if field is not None else None
    if field is not None and (there is None or (not rest and not _gives_way(there))):
        raise PluginError(
            f"{what} has the name of a {'section' if there else 'field'} of hekaton itself",
            hint="a plugin's section needs a path of its own",
        )
    inner = _extended(there or _namespace(name), tuple(rest), schema, what) if rest else schema
    fields: Mapping[str, Any] = {name: (inner, Field(default_factory=inner))}
    return create_model(
        owner.__name__, __base__=owner, __doc__=owner.__doc__, __cls_kwargs__=_NO_SOURCE, **fields
    )


@lru_cache(maxsize=256)
def _joined(
    owner: type[SectionModel], path: str, schema: type[SectionModel], what: str
) -> type[SectionModel]:
    """``owner`` with the fields of ``schema`` in its section at ``path``, one of the core without a dot."""
    field = owner.model_fields.get(path)
    section = section_class(field) if field is not None else None
    if section is None:
        raise PluginError(f"{what} joins '{path}', which is no section of hekaton's")
    if both := sorted(section.model_fields.keys() & schema.model_fields.keys()):
        raise PluginError(f"{what} joins '{path}' with a field '{both[0]}', which that has already")
    fields: Mapping[str, Any] = {name: (one.annotation, one) for name, one in schema.model_fields.items()}
    wider = create_model(
        section.__name__, __base__=section, __doc__=section.__doc__, __cls_kwargs__=_NO_SOURCE, **fields
    )
    outer: Mapping[str, Any] = {path: (wider, Field(default_factory=wider))}
    return create_model(
        owner.__name__, __base__=owner, __doc__=owner.__doc__, __cls_kwargs__=_NO_SOURCE, **outer
    )


def _gives_way(section: type[SectionModel]) -> bool:
    return issubclass(section, CompatSection)


def _namespace(name: str) -> type[SectionModel]:
    return create_model(f"{name.title()}Section", __base__=SectionModel, __cls_kwargs__=_NO_SOURCE)


def class_at(config: type[SectionModel], path: Path) -> type[SectionModel] | None:
    """The class of the section at a path, ``None`` when there is none."""
    found: type[SectionModel] | None = config
    for name in path:
        field = found.model_fields.get(name) if found is not None else None
        found = section_class(field) if field is not None else None
    return found


def unknown_field_hint(config: type[SectionModel], path: Path, plugins: Plugins) -> str:
    """What may be meant by a section or field that does not exist."""
    *inside, name = path
    owner = class_at(config, tuple(inside)) or config
    elsewhere = [
        dotted((section, name))
        for section, field in config.model_fields.items()
        if (there := section_class(field)) is not None and name in there.model_fields
    ]
    hint = choices_hint(name, owner.model_fields)
    if inside and elsewhere:
        hint = f"did you mean {' or '.join(elsewhere[:3])}?\n{hint.splitlines()[-1]}"
    if now := CONVERTERS.get(dotted(path)):
        hint = f"[{dotted(path)}] is called [{now}] now"
    install = install_hint("section", dotted(path))
    if install:
        hint = f"{install}\n{hint}"
    absent = [info for info in plugins.infos if info.status != "ok"]
    if absent and not inside:
        hint += "\nnot loaded, and may contribute it:"
        hint += "".join(f"\n  {info}: {info.status}: {info.reason}" for info in absent)
    return hint
