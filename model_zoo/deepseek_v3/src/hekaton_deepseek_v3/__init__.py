"""DeepSeek V2 and V3 for hekaton."""

from hekaton.contributions import Check, HFAdapter, Model, Objective, Ref, Section, hookimpl

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


@hookimpl
def hekaton_objectives() -> list[Objective]:
    return [
        Objective(
            "multi_token",
            build=Ref("hekaton_deepseek_v3.multi_token:multi_token"),
            summary="the next token and the one after it",
        )
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "multi_token",
            schema=Ref("hekaton_deepseek_v3.settings:MultiTokenSection"),
            summary="weight of the token after the next",
        )
    ]


@hookimpl
def hekaton_checks() -> list[Check]:
    return [
        Check(
            "second_token_is_trained",
            rule=Ref("hekaton_deepseek_v3.settings:second_token_is_trained"),
            summary="a layer for a second token has its objective",
        )
    ]
