"""The sections of a run file, by the part of the run that they describe."""

from hekaton.config.sections.data import DataloaderSection, TrainingSection, ValidationSection
from hekaton.config.sections.fault import FaultSection
from hekaton.config.sections.model import (
    ActivationCheckpointSection,
    CompileSection,
    LRSchedulerSection,
    ModelSection,
    OptimizerGroup,
    OptimizerSection,
)
from hekaton.config.sections.processes import CommSection, ParallelismSection
from hekaton.config.sections.run import (
    CheckpointSection,
    DebugSection,
    JobSection,
    MetricsSection,
    PluginsSection,
    ProfilingSection,
)

__all__ = [
    "ActivationCheckpointSection",
    "CheckpointSection",
    "CommSection",
    "CompileSection",
    "DataloaderSection",
    "DebugSection",
    "FaultSection",
    "JobSection",
    "LRSchedulerSection",
    "MetricsSection",
    "ModelSection",
    "OptimizerGroup",
    "OptimizerSection",
    "ParallelismSection",
    "PluginsSection",
    "ProfilingSection",
    "TrainingSection",
    "ValidationSection",
]
