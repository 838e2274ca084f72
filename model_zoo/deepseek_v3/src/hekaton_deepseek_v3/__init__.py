"""DeepSeek V2 and V3 for hekaton."""

from hekaton.contributions import HFAdapter, Model, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_models() -> list[Model]:
    return [
        Model(
            "deepseek_v3",
            spec=Ref("hekaton_deepseek_v3.spec:train_spec"),
            summary="DeepSeek V2 and V3, latent attention and experts",
        )
    ]


@hookimpl
def hekaton_hf_adapters() -> list[HFAdapter]:
    return [
        HFAdapter(
            "deepseek_v3",
            table=Ref("hekaton_deepseek_v3.hugging_face:table"),
            write_config=Ref("hekaton_deepseek_v3.hugging_face:write_config"),
            read_config=Ref("hekaton_deepseek_v3.hugging_face:read_config"),
            architectures=("DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM"),
            model_types=("deepseek_v3", "deepseek_v2"),
            defaults=Ref("hekaton_deepseek_v3.hugging_face:defaults"),
            summary="weights and config.json as transformers' DeepseekV3ForCausalLM or DeepseekV2ForCausalLM",
        )
    ]
