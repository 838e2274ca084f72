"""Llama 3 for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

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


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "llama3",
            table=Ref("hekaton_llama3.hugging_face:table"),
            write_config=Ref("hekaton_llama3.hugging_face:write_config"),
            read_config=Ref("hekaton_llama3.hugging_face:read_config"),
            architectures=("LlamaForCausalLM",),
            summary="weights and config.json as transformers' LlamaForCausalLM",
        )
    ]
