"""MLflow logger for hekaton."""

from hekaton.contributions import Logger, Ref, Section, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_loggers() -> list[Logger]:
    return [Logger("mlflow", build=Ref("hekaton_mlflow.logger:build"), place="run", summary="runs of MLflow")]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section("mlflow", schema=Ref("hekaton_mlflow.section:MlflowSection"), summary="settings of MLflow")
    ]
