"""Recomputing activations: the same numbers, less memory, and as many operators computed again as it says.

The model has 4 blocks with 7 linear layers each, and the batch 4 documents, so a forward and backward without
recomputation takes 3 x (4 x 7 + 1) = 87 products of matrices and 4 x 4 = 16 attentions.
"""

import collections
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hekaton.building import materialize
from hekaton.config import load
from hekaton.config.sections import ActivationCheckpointSection, CompileSection
from hekaton.errors import ConfigErrors
from hekaton.init import initialize, resolve_init
from hekaton.parallel.activation import apply_activation_checkpoint, set_memory_budget
from hekaton.parallel.apply import Layout, apply_compile
from hekaton.parallel.pipeline import StageLayout, cut
from hekaton.parallel.plan import blocks
from hekaton.parallel.tensor import TensorContext
from hekaton.rules import check
from hekaton_llama3.model import Llama3, Llama3Config
from hekaton_llama3.spec import init, plan

CONFIG = Llama3Config(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, hidden_dim=96, vocab_size=101)
PLAN = plan(CONFIG)
EVERY_BLOCK = [f"layers.{number}" for number in range(4)]
SHAPES = "per_op_sac_force_recompute_mm_shapes_by_fqns"

NONE = {"mode": "none"}
FULL = {"mode": "full"}
EVERY_SECOND = {"mode": "selective", "selective_ac_option": "2"}
BY_OPERATOR = {"mode": "selective", "selective_ac_option": "op"}
BUDGET = {"mode": "memory_budget", "memory_budget": 0.0}


# Dynamo looks at the gradients of a block's inputs.
compiles = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class Watch(TorchDispatchMode):
    """Counts operators, and knows which of the tensors they made are still there."""

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()
        self._made = {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count[str(op)] += 1
        made = op(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._made[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
        return made

    def alive(self):
        return sum(size for reference, size in self._made.values() if not reference.expired())


class Step:
    """One forward and backward in float64."""

    def __init__(self, settings, *, compiled=False):
        section = ActivationCheckpointSection(**settings)
        with torch.device("meta"):
            model = Llama3(CONFIG).double()
        rows = resolve_init(model, init(CONFIG), what="llama3")
        apply_activation_checkpoint(model, PLAN, section, every_block=EVERY_BLOCK, compiled=compiled)
        if compiled:
            torch._dynamo.reset()
            set_memory_budget(section, Path("unused"))
            layout = Layout(
                plan=PLAN, styles={}, tensor=TensorContext(sequence_parallel=False, loss_parallel=False)
            )
            apply_compile(model, layout, CompileSection(enable=True, backend="aot_eager"))
        materialize(model, torch.device("cpu"))
        initialize(model, rows, seed=0)
        tokens = torch.randint(0, 101, (2, 24), generator=torch.Generator().manual_seed(0))
        documents = torch.tensor([[0] * 5 + [1] * 11 + [2] * 8, [0] * 24])
        self.saved_bytes = 0
        if compiled:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                loss = F.cross_entropy(model(tokens, documents=documents).flatten(0, 1), tokens.flatten())
            loss.backward()
        else:
            with Watch() as watch:
                loss = F.cross_entropy(model(tokens, documents=documents).flatten(0, 1), tokens.flatten())
                self.saved_bytes = watch.alive()
                loss.backward()
            self.products = watch.count["aten.mm.default"]
            self.attentions = watch.count["aten._scaled_dot_product_flash_attention_for_cpu.default"]
        self.loss = loss.detach()
        self.gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    def _save(self, tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            self.saved_bytes += tensor.nbytes
        return tensor


@pytest.fixture(scope="module")
def kept():
    """Without recomputation."""
    return Step(NONE)


def assert_same(step, expected):
    torch.testing.assert_close(step.loss, expected.loss, rtol=1e-12, atol=0)
    for name, gradient in step.gradients.items():
        assert (gradient - expected.gradients[name]).norm() <= 1e-12 * expected.gradients[name].norm(), name


@pytest.mark.parametrize(
    ("settings", "products", "attentions"),
    [
        (NONE, 87, 16),
        (FULL, 87 + 4 * 7, 16 + 16),
        (EVERY_SECOND, 87 + 2 * 7, 16 + 8),
        ({"mode": "selective", "selective_ac_option": "3"}, 87 + 7, 16 + 4),
        # the 2nd, 4th and 6th of each block's 7 products
        (BY_OPERATOR, 87 + 4 * 3, 16),
        (BY_OPERATOR | {"save_ops": ["aten.mm.default"]}, 87, 16),
        # wq and wo, which has the same shape; and of the other 5 the 2nd and the 4th
        (BY_OPERATOR | {SHAPES: ["attention.wq"]}, 87 + 4 * (2 + 2), 16),
    ],
)
def test_the_selected_operators_are_recomputed(kept, settings, products, attentions):
    step = Step(settings)
    assert_same(step, kept)
    assert (step.products, step.attentions) == (products, attentions)


def test_recomputation_keeps_fewer_bytes(kept):
    full, second, by_operator = (Step(settings).saved_bytes for settings in (FULL, EVERY_SECOND, BY_OPERATOR))
    assert full < by_operator < kept.saved_bytes
    assert full < second < kept.saved_bytes
    more = Step(BY_OPERATOR | {"save_ops": ["aten.silu.default"]}).saved_bytes
    assert more - by_operator == 4 * 2 * 24 * 96 * 8  # blocks x rows x seq_len x hidden_dim x bytes


@compiles
@pytest.mark.parametrize("settings", [FULL, EVERY_SECOND, BY_OPERATOR, BUDGET])
def test_compiled_blocks_are_recomputed(kept, settings):
    step, everything = Step(settings, compiled=True), Step(NONE, compiled=True)
    assert_same(step, kept)
    assert step.saved_bytes < everything.saved_bytes


@compiles
def test_one_graph_serves_every_block():
    torch._dynamo.utils.counters.clear()
    Step(BY_OPERATOR, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@compiles
def test_another_mode_leaves_no_budget_behind():
    Step(BUDGET, compiled=True)
    assert torch._functorch.config.activation_memory_budget == 0.0
    set_memory_budget(ActivationCheckpointSection(mode="none"), Path("unused"))
    assert torch._functorch.config.activation_memory_budget == 1.0


def test_where_the_pipeline_is_cut_does_not_matter():
    with torch.device("meta"):
        stages = StageLayout(
            modules=[
                ["tok_embeddings", "layers.0"],
                ["layers.1", "layers.2", "layers.3"],
                ["norm", "output"],
            ],
            ranks=[0, 1, 2],
            layers="layers",
        )
        stage = cut(Llama3(CONFIG), stages, stages.modules[1])
    section = ActivationCheckpointSection(**EVERY_SECOND)
    apply_activation_checkpoint(stage, PLAN, section, every_block=EVERY_BLOCK)
    recomputed = [name for name, block in blocks(stage, PLAN) if "forward" in vars(block)]
    assert recomputed == ["layers.1", "layers.3"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["save_ops", '["aten.mmm.default"]'],
            "activation_checkpoint.save_ops: torch has no operator 'aten.mmm.default'\n"
            "  from: --activation_checkpoint.save_ops\n  did you mean 'aten.mm.default'?",
        ),
        (
            ["save_ops", '["aten.mm"]'],
            "activation_checkpoint.save_ops: torch has no operator 'aten.mm'\n"
            "  from: --activation_checkpoint.save_ops\n  choose an overload: aten.mm.default, ",
        ),
        (
            [SHAPES, '["attention.wx"]'],
            f"activation_checkpoint.{SHAPES}: llama3 has no linear layer 'attention.wx'\n"
            f"  from: --activation_checkpoint.{SHAPES}\n  give the end of a module's name",
        ),
        (
            [SHAPES, '["attention"]'],
            f"activation_checkpoint.{SHAPES}: 'layers.0.attention' is a Attention, not a linear layer\n"
            f"  from: --activation_checkpoint.{SHAPES}",
        ),
        (
            ["debug", "true"],
            'activation_checkpoint.debug cannot record under selective_ac_option = "op"\n'
            "  from: --activation_checkpoint.debug",
        ),
    ],
)
def test_conflicting_options_are_rejected(flags, message):
    field, value = flags
    loaded = load(
        [],
        [
            "--model.flavor", "debugmodel", "--activation_checkpoint.selective_ac_option", "op",
            f"--activation_checkpoint.{field}", *([] if field == "debug" else [value]),
        ],
    )  # fmt: skip
    with pytest.raises(ConfigErrors) as caught:
        check(loaded, world_size=1, device_type="cpu")
    (problem,) = caught.value.problems
    assert str(problem).startswith(message)


SPLIT = [
    "--model.flavor", "debugmodel", "--parallelism.pipeline_parallel_degree", "2",
    "--parallelism.pipeline_parallel_schedule", "InterleavedZeroBubble",
    "--activation_checkpoint.selective_ac_option", "op", "--training.local_batch_size", "8",
]  # fmt: skip


def test_a_backward_in_two_parts_finds_what_was_kept_once():
    with pytest.raises(ConfigErrors) as caught:
        check(load([], SPLIT), world_size=2, device_type="cpu")
    (problem,) = caught.value.problems
    assert str(problem) == (
        "schedule 'InterleavedZeroBubble' goes backward twice over each block, for inputs and for weights, and "
        "what recomputation by operator keeps is there once\n"
        "  from: --parallelism.pipeline_parallel_schedule; --activation_checkpoint.selective_ac_option\n"
        '  choose activation_checkpoint.mode = "full", or another schedule'
    )
    check(load([], [*SPLIT, "--compile.enable"]), world_size=2, device_type="cpu")
