"""Mistakes put into what ``hekaton new`` writes: the kit notices each, and names the thing and the contract."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hekaton.errors import PluginError
from hekaton.scaffold import chosen, distribution_files, write
from hekaton.testing.conformance import cases_of

SEVERAL = pytest.mark.slow


@dataclass(frozen=True)
class Mistake:
    """A text of a module and the wrong one in its place.

    :param named: what the message names beside the contract.
    """

    kind: str
    promise: str
    file: str
    right: str
    wrong: str
    named: str


MISTAKES = {
    # Models, on one process.
    "a parameter has no initial value": Mistake(
        "model", "model:tables", "model", '        "norm.weight": Constant(1.0),\n', "", "norm.weight"
    ),
    "an entry of the init table matches nothing": Mistake(
        "model", "model:tables", "model", "layers.*.attention.wo.weight", "layers.*.attention.w0.weight", "attention.w0"
    ),
    "the block of the plan is nothing": Mistake(
        "model", "model:tables", "model", 'block="layers.*"', 'block="layer.*"', "layer.*"
    ),
    "a module has no style": Mistake(
        "model", "model:tables", "model", '            "norm": "sequence_norm",\n', "", "norm.weight"
    ),
    "attention sees later tokens": Mistake(
        "model", "model:tables", "model", "queries_at[:, None] >= keys_at[None, :]",
        "queries_at[:, None] >= keys_at[None, :] - 1", "depends on a later token",
    ),
    "attention sees other documents": Mistake(
        "model", "model:tables", "model", "(seen & same)[:, None]", "(seen & (same | True))[:, None]",
        "another document's tokens",
    ),
    "a layer is not used": Mistake(
        "model", "model:tables", "model", "F.silu(self.w1(x)) * self.w3(x)", "F.silu(self.w1(x))", "feed_forward.w3"
    ),
    "a buffer is not reset": Mistake(
        "model", "model:tables", "model", "        self.inner = InnerAttention()\n",
        "        self.inner = InnerAttention()\n"
        '        self.register_buffer("scale", torch.ones(()), persistent=False)\n', "scale of 'layers.0.attention'",
    ),
    "flops that are no number": Mistake(
        "model", "model:tables", "model", "return 6.0 * products", 'return float("nan") * products', "flops_per_unit"
    ),
    # Models, on two.
    "heads are those of the configuration": Mistake(
        "model", "model:gradients", "model", "unflatten(-1, (-1, self.head_dim))", "unflatten(-1, (4, -1))", "under tp2"
    ),
    "positions are counted anew": Mistake(
        "model", "model:gradients", "model", "if positions is None:", "if positions is not None:", "under cp2"
    ),
    "the queries' places are not looked at": Mistake(
        "model", "model:gradients", "model",
        "queries_at = torch.arange(q.shape[2], device=q.device) if queries_at is None else queries_at",
        "queries_at = torch.arange(q.shape[2], device=q.device)", "under cp2",
    ),
    "a later stage lacks its norm": Mistake(
        "model", "model:gradients", "model", "x if self.norm is None else self.norm(x)", "self.norm(x)", "under pp2"
    ),
    "a sum over ranks is missing": Mistake(
        "model", "model:gradients", "model", '"layers.*.feed_forward.w2": "rowwise"',
        '"layers.*.feed_forward.w2": "replicate"', "under tp2",
    ),
    # Adapters.
    "the table drops a tensor": Mistake(
        "model", "hf adapter:table", "hugging_face", '    "attention.wk": "self_attn.k_proj",\n', "", "attention.wk"
    ),
    "config.json forgets a value": Mistake(
        "model", "hf adapter:table", "hugging_face", '"rms_norm_eps": config.norm_eps', '"rms_norm_eps": 1e-6', "norm_eps"
    ),
    "two tensors are exchanged": Mistake(
        "model", "hf adapter:reference", "hugging_face",
        '    "feed_forward.w1": "mlp.gate_proj",\n    "feed_forward.w2": "mlp.down_proj",\n'
        '    "feed_forward.w3": "mlp.up_proj",\n',
        '    "feed_forward.w1": "mlp.up_proj",\n    "feed_forward.w2": "mlp.down_proj",\n'
        '    "feed_forward.w3": "mlp.gate_proj",\n', "logits differ from those of LlamaForCausalLM",
    ),
    # Data.
    "a document depends on those beside it": Mistake(
        "dataset", "dataset:access", "dataset", "divmod(int(index), self.largest) for index in indices",
        "divmod(int(index) % len(indices), self.largest) for index in indices", "differs when it is fetched alone",
    ),
    "the dataset counts what it gave": Mistake(
        "dataset", "dataset:resume", "dataset",
        '        return [f"{a + 1} + {b + 1} = {a + b + 2}\\n" for a, b in pairs]\n',
        '        self.given = getattr(self, "given", 0) + 1\n'
        '        return [f"{a + 1} + {b + 1} = {a + b + 2} {self.given}\\n" for a, b in pairs]\n', "'tokens' of step",
    ),
    "a fingerprint differs each time": Mistake(
        "dataset", "dataset:access", "dataset",
        '        self.fingerprint = f"sums up to {largest}"  # changes when the documents do\n',
        "\n    @property\n    def fingerprint(self) -> str:\n        import time\n\n        return str(time.perf_counter_ns())\n", "fingerprint",
    ),
    "an id is beyond the vocabulary": Mistake(
        "tokenizer", "tokenizer:ids", "tokenizer", "vocab_size = END + 1", "vocab_size = NEWLINE", "vocab_size"
    ),
    "texts come with marks": Mistake(
        "tokenizer", "tokenizer:ids", "tokenizer", "[_id(character) for character in text]",
        "[BEGIN, *map(_id, text)]", "mark",
    ),
    "another text comes back": Mistake(
        "tokenizer", "tokenizer:round trip", "tokenizer", "chr(FIRST + number)", "chr(FIRST + number).upper()",
        "which has other ids",
    ),
    "targets depend on what is encoded together": Mistake(
        "encoder", "encoder:parts", "encoder", "question, mark, answer = part.content.partition(self.after)",
        "question, mark, answer = parts[0].content.partition(self.after)", "depend on what is encoded together",
    ),
    "an epoch lacks a document": Mistake(
        "order", "order:epochs", "order", "self.documents - 1 - within", "self.documents - 1 - within // 2",
        "has not each document once",
    ),
    "rows keep something": Mistake(
        "row_maker", "row maker:rows", "row_maker", '            out["tokens"][begin:end] = span.ids\n',
        '            self.made = getattr(self, "made", 0) + 1\n'
        '            out["tokens"][begin:end] = span.ids + self.made\n', "'tokens' of row",
    ),
    # What a run is made of.
    "a converter adds a parameter without a value": Mistake(
        "converter", "converter:draft", "converter", "        bounded.__class__ = BoundedLinear\n",
        "        bounded.__class__ = BoundedLinear\n"
        '        bounded.gain = nn.Parameter(torch.ones(1, device="meta"))\n', "output.gain",
    ),
    "a converter freezes everything": Mistake(
        "converter", "converter:draft", "converter", "        return draft\n",
        "        draft.model.requires_grad_(False)\n        return draft\n", "nothing is trained",
    ),
    "a loss is a mean": Mistake(
        "objective", "objective:terms", "objective", 'reduction="sum"', 'reduction="mean"', "next_token"
    ),
    "an objective changes its batch": Mistake(
        "objective", "objective:terms", "objective", '.masked_fill(', ".masked_fill_(", "changes 'labels'"
    ),
    "an optimizer climbs": Mistake(
        "optimizer", "optimizer:steps", "optimizer", '* -group["lr"]', '* group["lr"]', "goes up the gradient"
    ),
    "a decay has no effect": Mistake(
        "optimizer", "optimizer:steps", "optimizer",
        'parameter.mul_(1 - group["lr"] * group["weight_decay"])', "pass", "optimizer.weight_decay",
    ),
    "state is kept where no checkpoint looks": Mistake(
        "optimizer", "optimizer:steps", "optimizer", "state = self.state[parameter]",
        'state = vars(self).setdefault("kept", {}).setdefault(parameter, {})', "",
    ),
    "a schedule counts its calls": Mistake(
        "schedule", "lr schedule:factors", "schedule", "        step = steps_done + 1\n",
        '        factor.calls = getattr(factor, "calls", 0) + 1\n        step = factor.calls\n',
        "depends on what was asked for before",
    ),
    "a logger wants a metric": Mistake(
        "logger", "logger:metrics", "logger", "        self.stream.flush()\n",
        '        assert metrics["grad_norm"]\n', "grad_norm",
    ),
    "a logger hides its failure": Mistake(
        "logger", "logger:failure", "logger",
        "        path.parent.mkdir(parents=True, exist_ok=True)\n"
        "        self.path = path\n"
        '        self.stream = path.open("a", encoding="utf-8", newline="")\n',
        "        import io\n\n        self.path = path\n        self.stream = io.StringIO()\n", "raises nothing",
    ),
    "a format loses what the second rank has": Mistake(
        "checkpoint_format", "checkpoint format:round trip", "weight_format", "number % options.ranks == options.rank",
        "options.rank == 0 and number % options.ranks == 0", "tensors are read as",
    ),
    "a format rounds": Mistake(
        "checkpoint_format", "checkpoint format:round trip", "weight_format", "tensor.read().float()",
        "tensor.read().half().float()", "is read back changed",
    ),
    "a rule speaks to everybody": Mistake(
        "check", "check:rule", "rule", "    if largest is not None and", '    yield "hello"\n    if largest is not None and',
        "for a run that does not use its plugin",
    ),
    "a subject has the time": Mistake(
        "identity_subject", "identity subject:values", "subject", 'os.environ.get("CONTAINER_IMAGE", "none")',
        "str(__import__('time').perf_counter_ns())", "each time",
    ),
    "an evaluation has this rank's part": Mistake(
        "evaluation", "evaluation:numbers", "evaluation", "dist.is_initialized()", "not dist.is_initialized()",
        "under shard2 gives 'largest_weight'",
    ),
    "help needs torch": Mistake(
        "command", "command:help", "command", "from hekaton.errors", "import torch\n\nfrom hekaton.errors", "torch"
    ),
    "a field has no help": Mistake(
        "dataset", "section:fields", "settings", '    """Both numbers of a sum go from 1 up to this."""\n', "", "'largest'"
    ),
    "a record names nothing": Mistake(
        "dataset", "plugin:rules", "__init__", ".dataset:build", ".dataset:biuld", "biuld"
    ),
    "the plugin is heavy": Mistake(
        "dataset", "plugin:rules", "__init__", "from hekaton.contributions", "import torch\nfrom hekaton.contributions",
        "imports torch",
    ),
    "a strategy mistakes its queries": Mistake(
        "context_strategy", "context parallel:attention", "context", "[self.group.rank]", "[-1 - self.group.rank]",
        "under cp2",
    ),
    "a dispatcher forgets the weights": Mistake(
        "dispatcher", "dispatcher:tokens", "dispatcher", "results if weights_on_input else results * scale", "results",
        "the results differ",
    ),
}  # fmt: skip
ON_TWO_PROCESSES = (
    "model:gradients",
    "context parallel:attention",
    "dispatcher:tokens",
    "evaluation:numbers",
)


def test_there_are_enough():
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=SEVERAL if mistake.promise in ON_TWO_PROCESSES else ())
        for name, mistake in MISTAKES.items()
    ],
)
def test_a_mistake_is_noticed(name, tmp_path, monkeypatch):
    mistake = MISTAKES[name]
    package = f"w{list(MISTAKES).index(name)}"
    texts = distribution_files(chosen([mistake.kind, package]))
    path = f"src/hekaton_{package}/{mistake.file}.py"
    assert texts[path].count(mistake.right) >= 1, "the right text is in the template"
    write(texts | {path: texts[path].replace(mistake.right, mistake.wrong, 1)}, tmp_path / "wrong")
    monkeypatch.syspath_prepend(str(tmp_path / "wrong/src"))
    kind, _, promise = mistake.promise.partition(":")
    with pytest.raises((AssertionError, PluginError)) as error:
        check(tmp_path / "wrong/src" / f"hekaton_{package}", kind, promise)
    assert mistake.named in str(error.value), str(error.value)
    assert f"docs/contracts/{kind.replace(' ', '-')}.md#{promise.replace(' ', '-')}" in str(error.value)


def check(package: Path, kind: str, promise: str) -> None:
    """The cases of one promise of one kind, in a package that is not installed."""
    try:
        plugin = f"hekaton_{package.name.removeprefix('hekaton_')}"
        cases = [
            case
            for case in cases_of(
                plugin, [f"--{package.name.removeprefix('hekaton_')}.every", "3"] * (kind == "evaluation")
            )
            if case.name.startswith(f"{kind} ") and case.name.endswith(f": {promise}")
        ]
        assert cases, "there is such a case"
        for case in cases:
            case.check()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
