"""The private names of torch that hekaton uses, since torch has no public way to the same thing.

Any release of torch may remove a private name. So each is here with its reason and the releases that have it.
A test fails where a listed name is missing, and on a use that is not listed. Where torch gets a public name,
it replaces the private one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """A private name, or a name in a private module.

    :param name: from ``torch`` on; an attribute of objects as that of their class.
    :param reason: what it is used for.
    :param seen: the releases of torch that had it when it was last looked up.
    """

    name: str
    reason: str
    seen: tuple[str, ...] = ("2.11", "2.13", "2.14")


PRIVATE_NAMES = (
    # The dry run
    PrivateName(
        "torch._subclasses.fake_tensor.FakeTensorMode", "tensors without memory: the dry run, conversions"
    ),
    PrivateName(
        "torch.testing._internal.distributed.fake_pg.FakeStore", "a process group in which nothing is sent"
    ),
    PrivateName(
        "torch.utils._python_dispatch.is_traceable_wrapper_subclass", "parameters that a converter wrapped"
    ),
    PrivateName("torch.utils._python_dispatch.TorchDispatchMode", "to see every operator of a step"),
    PrivateName("torch.utils._pytree.tree_leaves", "the tensors among the results of an operator"),
    PrivateName(
        "torch.distributed.tensor._sharding_prop.ShardingPropagator._propagate_tensor_meta_non_cached",
        "DTensor calls operators only to know a shape: these are not counted",
    ),
    PrivateName(
        "torch.distributed.tensor._utils._compute_local_shape_and_global_offset",
        "the shape of a parameter's part on any rank",
    ),
    PrivateName(
        "torch.distributed.tensor._utils.compute_local_shape_and_global_offset",
        "the place of this rank's part in a parameter",
    ),
    PrivateName(
        "torch.distributed.pipelining._utils.InferenceMode",
        "stages whose shapes are known need no vote on it",
        seen=("2.13", "2.14"),
    ),
    PrivateName(
        "torch.distributed.pipelining.stage.PipelineStage._inference_mode",
        "as InferenceMode",
        seen=("2.13", "2.14"),
    ),
    PrivateName(
        "torch.distributed.pipelining.stage.PipelineStage._get_init_p2p_neighbors_ops",
        "the first messages between stages before torch 2.13: none of a rank to itself",
    ),
    PrivateName(
        "torch.distributed.pipelining.schedules._PipelineSchedule._warmup_p2p",
        "as InferenceMode",
        seen=("2.13", "2.14"),
    ),
    # Layouts
    PrivateName(
        "torch.distributed.device_mesh.DeviceMesh._unflatten", "several views of the same processes as meshes"
    ),
    PrivateName("torch.distributed.device_mesh.DeviceMesh._flatten", "axes that are summed over together"),
    PrivateName(
        "torch.distributed.fsdp.FSDPModule._set_unshard_async_op",
        "gathers parameters ahead of their use where there are no CUDA streams",
    ),
    PrivateName(
        "torch.distributed.pipelining.schedules._PipelineScheduleRuntime", "runs a schedule from a CSV file"
    ),
    PrivateName(
        "torch.distributed.pipelining.schedules._PipelineScheduleRuntime._load_csv", "reads such a schedule"
    ),
    PrivateName(
        "torch.distributed.tensor.parallel.RowwiseParallel._prepare_output_fn",
        "the output of a row-wise layer, whose gradient is sent in float8",
    ),
    PrivateName("torch.distributed._symmetric_memory", "memory that asynchronous tensor parallel needs"),
    PrivateName(
        "torch._inductor.config._micro_pipeline_tp", "turns inductor's asynchronous tensor parallel on"
    ),
    PrivateName("torch.nn.Module._modules", "children by name, also one that is used twice, or is removed"),
    PrivateName("torch.nn.Module._buffers", "buffers of one module, also those that are None"),
    PrivateName(
        "torch.distributed._functional_collectives", "collectives with gradients, and whether one is done"
    ),
    PrivateName(
        "torch.distributed.tensor.experimental._context_parallel._attention",
        "ring attention and its options",
    ),
    PrivateName(
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu", "a part of ring attention, on CPU"
    ),
    PrivateName("torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward", "its gradient"),
    PrivateName("torch.ops.aten._scaled_dot_product_flash_attention", "a part of ring attention, on CUDA"),
    PrivateName("torch.ops.aten._scaled_dot_product_flash_attention_backward", "its gradient"),
    PrivateName("torch._subclasses.fake_tensor.FakeTensor", "whether values are there to decide by"),
    PrivateName(
        "torch.Tensor._version", "whether an objective has changed the outputs of the model in place"
    ),
    PrivateName("torch.Tensor._base", "whether the output of a block is a view, of which FSDP warns"),
    # Recomputation
    PrivateName("torch.ops.aten._scaled_dot_product_efficient_attention", "kept by selective recomputation"),
    PrivateName("torch.ops.aten._scaled_dot_product_cudnn_attention", "kept by selective recomputation"),
    PrivateName(
        "torch.ops.aten._scaled_dot_product_fused_attention_overrideable", "kept by selective recomputation"
    ),
    PrivateName("torch.ops.aten._scaled_mm", "kept by selective recomputation"),
    PrivateName("torch.ops._c10d_functional.reduce_scatter_tensor", "kept by selective recomputation"),
    PrivateName("torch._functorch.config", "the memory budget of the compiler's recomputation"),
    PrivateName("torch._ops.OpOverload", "whether a name is that of an operator"),
    PrivateName("torch._ops.HigherOrderOperator", "as OpOverload"),
    PrivateName("torch._ops.OpOverloadPacket", "an operator that was named without its overload"),
    PrivateName("torch._C._dispatch_get_all_op_names", "the nearest operator, for an error"),
    PrivateName(
        "torch._C._current_graph_task_id", "whether a forward pass runs within a backward pass, to recompute"
    ),
    # Optimizers and checkpoints
    PrivateName("torch._foreach_mul_", "scales all gradients in one call"),
    PrivateName("torch.optim.Adam._init_group", "the tensors of a step, of which each rank gives its part"),
    PrivateName(
        "torch.optim.Optimizer._optimizer_step_pre_hooks",
        "an optimizer's copy without hooks, which makes the state that a parameter starts with",
    ),
    PrivateName("torch.optim.Optimizer._optimizer_step_post_hooks", "as _optimizer_step_pre_hooks"),
    PrivateName("torch.distributed.tensor.DTensor._spec", "a DTensor of a copy in the host's memory"),
    PrivateName(
        "torch.distributed.checkpoint._fsspec_filesystem.FileSystem", "checkpoint folders behind a URL"
    ),
    PrivateName("torch.distributed.checkpoint.filesystem._StorageInfo", "says where each item was written"),
    PrivateName("torch._C.PyTorchFileReader", "where torch.save left room for each tensor"),
    PrivateName("torch._neg_view", "stored tensors with a negative bit"),
    # Processes and profiling
    PrivateName(
        "torch._C._distributed_c10d._dump_fr_trace_json",
        "the collectives that a hang is in; _dump_nccl_trace_json where torch has NCCL",
    ),
    PrivateName("torch.distributed.distributed_c10d._world", "every process group, to set its timeout"),
    PrivateName(
        "torch.distributed.distributed_c10d._set_pg_timeout",
        "the timeout of a group before torch 2.14, which has torch.distributed.set_timeout",
    ),
    PrivateName("torch._dynamo.config", "says once what torch would say on every rank (Python 3.13.0)"),
    PrivateName(
        "torch.utils.data._utils.signal_handling._SIGCHLD_handler_set",
        "a run from Python takes back the handler that data workers need, and a later run has it again",
    ),
    PrivateName("torch.autograd.profiler._is_profiler_enabled", "two profilers at once are an error"),
    PrivateName(
        "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._start_workers",
        "signals are passed on to the processes, once they are there",
    ),
    PrivateName(
        "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._monitor_workers",
        "no process is started again that ended because it was told to",
    ),
    PrivateName(
        "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._shutdown",
        "kills the processes that have not ended in time after a signal",
    ),
    PrivateName(
        "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._remaining_restarts",
        "as _monitor_workers",
    ),
    PrivateName(
        "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent._worker_group",
        "the processes, for signals",
    ),
    PrivateName("torch.cuda.memory._record_memory_history", "memory snapshots"),
    PrivateName("torch.cuda.memory._snapshot", "memory snapshots"),
    # The test kit
    PrivateName("torch.distributed.ProcessGroupGloo._Options", "one device for all groups", seen=("2.13",)),
    PrivateName(
        "torch.distributed.ProcessGroupGloo._Options._devices", "one device for all groups", seen=("2.13",)
    ),
    PrivateName("torch.distributed.ProcessGroupGloo._Options._timeout", "that of the group", seen=("2.13",)),
)
