"""Llama 3 for hekaton."""

from hekaton.contributions import Model, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "llama3",
            spec=Ref("hekaton_llama3.spec:train_spec"),
            summary="Llama 3, 3.1 and 3.2, dense decoders",
        )
    ]
