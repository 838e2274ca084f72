"""TensorBoard logger for hekaton."""

from hekaton.contributions import Logger, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_loggers() -> list[Logger]:
    return [
        Logger(
            "tensorboard", build=Ref("hekaton_tensorboard.writer:build"), summary="TensorBoard event files"
        )
    ]
