"""gpt-oss for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "gpt_oss",
            spec=Ref("hekaton_gpt_oss.spec:train_spec"),
            summary="gpt-oss, attention sinks in alternating windows and experts",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "gpt_oss",
            table=Ref("hekaton_gpt_oss.hugging_face:table"),
            write_config=Ref("hekaton_gpt_oss.hugging_face:write_config"),
            read_config=Ref("hekaton_gpt_oss.hugging_face:read_config"),
            architectures=("GptOssForCausalLM",),
            model_types=("gpt_oss",),
            summary="weights and config.json as transformers' GptOssForCausalLM",
        )
    ]
