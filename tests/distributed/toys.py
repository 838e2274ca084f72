"""A plugin for test_contracts.py: an objective with two terms on float inputs, a model that counts what passes
through it, and the next token with a z-loss."""

from dataclasses import asdict, dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from hekaton.contributions import Converter, HFAdapter, Model, Objective, ParallelStyle, Ref, hookimpl
from hekaton.draft import Merge
from hekaton.init import Constant, Normal
from hekaton.loss import IGNORE_INDEX, NextToken
from hekaton.objective import BatchTensor
from hekaton.parallel.plan import ParallelPlan, Stages
from hekaton.recomputation import is_recomputed
from hekaton.spec import TrainSpec
from hekaton.weights import WeightTable, entry
from hekaton_blocks import Attention, FeedForward, rotary_table

CHANNELS, CHOICES = 4, 3
SCALE = 0.5


@dataclass(frozen=True, kw_only=True)
class Config:
    dim: int = 64
    n_layers: int = 6
    n_heads: int = 8
    n_kv_heads: int = 4
    hidden_dim: int = 96
    vocab_size: int = 264

    @property
    def head_dim(self):
        return self.dim // self.n_heads


class Router(nn.Module):
    """Scales each position by the choice that it makes, with a bias that evens the choices out."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bias", torch.empty(CHOICES))
        self.register_buffer("counts", torch.empty(CHOICES, dtype=torch.long), persistent=False)

    def reset_buffers(self):
        self.bias.zero_()
        self.counts.zero_()

    def forward(self, x):
        """:param x: (batch, seq, dim), whole on every rank of tensor parallel."""
        local = x.to_local() if isinstance(x, DTensor) else x
        with torch.no_grad():
            choice = (local[..., :CHOICES] + self.bias).argmax(-1)
            if self.training and not is_recomputed():
                self.counts += nn.functional.one_hot(choice, CHOICES).sum((0, 1))
            scale = (1.0 + 0.25 * choice.to(local.dtype)).unsqueeze(-1)
        if isinstance(x, DTensor):
            scale = DTensor.from_local(scale, x.device_mesh, [Replicate()], run_check=False)
        return x * scale


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim)
        self.router = Router()
        self.attention = Attention(config.dim, config.n_heads, config.n_kv_heads, config.head_dim)
        self.ffn_norm = nn.RMSNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.hidden_dim)

    def forward(self, x, rotary):
        x = x + self.attention(self.router(self.attention_norm(x)), rotary, None)
        return x + self.feed_forward(self.ffn_norm(x))


class Denoiser(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.into = nn.Linear(CHANNELS, config.dim, bias=False)
        self.layers = nn.ModuleDict({str(i): Block(config) for i in range(config.n_layers)})
        self.norm = nn.RMSNorm(config.dim)
        self.out = nn.Linear(config.dim, CHANNELS, bias=False)

    def forward(self, values, positions=None):
        """:param values: (batch, seq, CHANNELS); on later stages (batch, seq, dim)"""
        if positions is None:
            positions = torch.arange(values.shape[1], device=values.device)
        rotary = rotary_table(positions, self.config.head_dim, 10_000.0, None)
        h = values if self.into is None else self.into(values)
        for layer in self.layers.values():
            h = layer(h, rotary)
        h = h if self.norm is None else self.norm(h)
        if self.out is None:
            return h
        out = self.out(h)
        return out.view(out.shape)  # a view, as a linear layer with a bias returns one


def balance(parts, meshes):
    """Raise the bias of what was chosen too seldom in the step, over all ranks that saw other positions."""
    for router in (module for part in parts for module in part.modules() if isinstance(module, Router)):
        dist.all_reduce(router.counts, group=meshes.loss.get_group())
        chosen = router.counts.to(router.bias.dtype)
        router.bias += (chosen.mean() - chosen) / 512
        router.counts.zero_()


spec = TrainSpec(
    name="denoiser",
    model=Denoiser,
    flavors={"debugmodel": Config()},
    plan=lambda config: ParallelPlan(
        block="layers.*",
        tensor={
            "into": "lift",
            "layers.*.{attention_norm,ffn_norm}": "sequence_norm",
            "layers.*.attention.{wq,wk,wv}": "colwise",
            "layers.*.attention.wo": "rowwise",
            "layers.*.feed_forward.{w1,w3}": "colwise",
            "layers.*.feed_forward.w2": "rowwise",
            "norm": "sequence_norm",
            "out": "gathered",
        },
        context=["layers.*.attention.inner"],
        stages=Stages(first=["into"], layers="layers", last=["norm", "out"]),
    ),
    init=lambda config: {
        "{into,out}.weight": Normal(0.3),
        "layers.*.{attention_norm,ffn_norm}.weight": Constant(1.0),
        "layers.*.attention.{wq,wk,wv,wo}.weight": Normal(0.1),
        "layers.*.feed_forward.{w1,w2,w3}.weight": Normal(0.1),
        "norm.weight": Constant(1.0),
    },
    objective="masked_denoising",
    before_step=balance,
)


class MaskedDenoising:
    """Restore the positions that were replaced by noise; and keep outputs small."""

    weights = {"restore": 1.0, "size": 0.25}  # noqa: RUF012

    def __init__(self, context):
        self.context = context

    def inputs(self, seq_len):
        values = BatchTensor(
            name="values", shape=(seq_len, CHANNELS), dtype=self.context.dtype, sequence=0, first_stage=True
        )
        positions = BatchTensor(name="positions", shape=(seq_len,), dtype=torch.long, sequence=0)
        return [values, positions] if self.context.sequence_is_cut else [values]

    def targets(self, seq_len):
        return [
            BatchTensor(name="clean", shape=(seq_len, CHANNELS), dtype=self.context.dtype, sequence=0),
            BatchTensor(name="masked", shape=(seq_len,), dtype=torch.bool, sequence=0),
        ]

    def prepare(self, batch, draw):
        tokens = batch["tokens"]
        waves = torch.arange(1, CHANNELS + 1, device=tokens.device)
        clean = (tokens.unsqueeze(-1) * waves).to(self.context.dtype).sin()
        masked = draw.uniform("masked", tokens.shape[1:]) < 0.4
        noise = draw.normal("noise", clean.shape[1:]).to(self.context.dtype)
        inputs = {"values": torch.where(masked.unsqueeze(-1), noise, clean)}
        if self.context.sequence_is_cut:
            inputs["positions"] = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        return inputs, {"clean": clean, "masked": masked}

    def count(self, targets):
        every = targets["masked"].new_full((), targets["clean"].numel(), dtype=torch.long)
        return {"restore": targets["masked"].sum(), "size": every}

    def loss(self, outputs, targets):
        wrong = (outputs - targets["clean"]).square().sum(-1)
        return {"restore": (wrong * targets["masked"]).sum(), "size": outputs.square().sum()}


def masked_denoising(section, context):
    return MaskedDenoising(context)


class WithZLoss(NextToken):
    """The next token, and the squared logarithm of the partition function (PaLM, section 5)."""

    weights = {"next_token": 1.0, "z": 1e-2}  # noqa: RUF012

    def count(self, targets):
        count = super().count(targets)["next_token"]
        return {"next_token": count, "z": count.clone()}

    def loss(self, outputs, targets):
        counted = targets["labels"] != IGNORE_INDEX
        whole = outputs.full_tensor() if isinstance(outputs, DTensor) else outputs
        z = (whole.logsumexp(-1).square() * counted).sum()
        term = super().loss(outputs, targets)["next_token"]
        if isinstance(term, DTensor):
            z = DTensor.from_local(z, term.device_mesh, [Replicate()], run_check=False)
        return {"next_token": term, "z": z}


def with_z_loss(section, context):
    return WithZLoss(needs_positions=context.sequence_is_cut)


class Adapted(nn.Module):
    """A frozen linear layer and a product of two thin ones beside it (LoRA; Hu et al., 2021)."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, 2, bias=False, device="meta", dtype=base.weight.dtype)
        self.b = nn.Linear(2, base.out_features, bias=False, device="meta", dtype=base.weight.dtype)

    def forward(self, x):
        return self.base(x) + SCALE * self.b(self.a(x))


class AdaptValues:
    def convert(self, draft):
        merges = []
        for i in draft.model.layers:
            block = draft.model.layers[i].attention
            block.wv = Adapted(block.wv)
            name = f"layers.{i}.attention.wv"
            parts = [f"{name}.base.weight", f"{name}.a.weight", f"{name}.b.weight"]
            merges.append(Merge(into=f"{name}.weight", parts=parts, make=merge))
        qkv = "layers.*.attention.{wq,wk,wv}"
        tensor = {pattern: style for pattern, style in draft.plan.tensor.items() if pattern != qkv}
        init = dict(draft.init)
        values = init.pop("**.attention.{wq,wk,wv}.weight")
        attention = "layers.*.attention"
        init |= {f"{attention}.{{wq,wk}}.weight": values, f"{attention}.wv.{{base,a,b}}.weight": values}
        draft = replace(draft, plan=replace(draft.plan, tensor=tensor), init=init, merges=merges)
        styles = {f"{attention}.{{wq,wk}}": "colwise", f"{attention}.wv.{{base,b}}": "colwise"}
        styles[f"{attention}.wv.a"] = "replicate"
        return replace(draft.with_entries(tensor=styles), trained=["layers.*.attention.wv.{a,b}.weight"])


def merge(parts):
    base, a, b = parts
    return base + SCALE * (b @ a)


def adapt_values(section, dims):
    return AdaptValues()


class StartAdapters:
    """Adapters that are not 0 in the beginning, so that both of their factors have a gradient."""

    def convert(self, draft):
        return replace(draft, init={**draft.init, "**.lora_b": Normal(0.1)})


def start_adapters(section, dims):
    return StartAdapters()


def table(config):
    """The denoiser as it might be published: other names, and the routers' biases among the weights."""
    names = [
        "attention_norm.weight", "router.bias", "ffn_norm.weight",
        *(f"attention.{name}.weight" for name in ("wq", "wk", "wv", "wo")),
        *(f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")),
    ]  # fmt: skip
    entries = [entry(name, name) for name in ("into.weight", "norm.weight", "out.weight")]
    entries += [entry(f"layers.{{i}}.{name}", f"blocks.{{i}}.{name}") for name in names]
    return WeightTable(entries=entries, layers=config.n_layers)


def write_config(config):
    return asdict(config)


def read_config(content):
    return Config(**{field.name: content[field.name] for field in fields(Config)})


def lift(section, context):
    between = Shard(1) if context.sequence_parallel else Replicate()
    return RowwiseParallel(input_layouts=Replicate(), output_layouts=between)


def gathered(section, context):
    return ColwiseParallel(output_layouts=Replicate())


@hookimpl
def hekaton_models():
    return [Model("denoiser", spec=Ref("toys:spec"), summary="denoises positions")]


@hookimpl
def hekaton_converters():
    return [
        Converter("adapt_values", build=Ref("toys:adapt_values"), summary="adapters beside a frozen model"),
        Converter("start_adapters", build=Ref("toys:start_adapters"), summary="adapters that are not 0"),
    ]


@hookimpl
def hekaton_objectives():
    return [
        Objective("masked_denoising", build=Ref("toys:masked_denoising"), summary="restores positions"),
        Objective("next_token_z", build=Ref("toys:with_z_loss"), summary="the next token, with a z-loss"),
    ]


@hookimpl
def hekaton_parallel_styles():
    return [
        ParallelStyle("lift", build=Ref("toys:lift"), summary="into the residual stream"),
        ParallelStyle("gathered", build=Ref("toys:gathered"), summary="out of it"),
    ]


@hookimpl
def hekaton_hf_adapters():
    return [
        HFAdapter(
            "denoiser",
            table=Ref("toys:table"),
            write_config=Ref("toys:write_config"),
            read_config=Ref("toys:read_config"),
            architectures=("Denoiser",),
            summary="the denoiser as it might be published",
        )
    ]
