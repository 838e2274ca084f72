"""How the tests of models compare with transformers, and with themselves."""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

PackedAndAlone = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


@pytest.fixture
def opened_by_transformers(tmp_path: Path) -> Callable[..., torch.nn.Module]:
    """``opened(name, model)``: transformers' model of the same weights, through files."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from hekaton.plugins import Plugins
    from hekaton.weights import whole
    from hekaton.weights.counterpart import adapter_of

    def opened(name: str, model: Any) -> torch.nn.Module:
        adapter = adapter_of(Plugins.discover(), name)
        own = {key: whole(value) for key, value in model.state_dict().items()}
        if model.output.weight is model.tok_embeddings.weight:
            del own["output.weight"]
        folder = tmp_path / "opened"
        folder.mkdir()
        tensors = adapter.table.load()(model.config).to_hf(own, what="it")
        values = {key: one.read().clone().contiguous() for key, one in tensors.items()}
        save_file(values, folder / "model.safetensors", metadata={"format": "pt"})
        content = {"architectures": adapter.architectures[:1], **adapter.write_config.load()(model.config)}
        (folder / "config.json").write_text(json.dumps(content))
        theirs, info = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
        assert not any(info.values()), info
        return theirs

    return opened


@pytest.fixture
def from_files() -> Callable[[str, Path], torch.nn.Module]:
    """``from_files(name, folder)``: our model with the weights of a folder that transformers saved."""
    from hekaton.building import materialize
    from hekaton.plugins import Plugins
    from hekaton.weights.counterpart import build_format, counterpart_of

    def built(name: str, folder: Path) -> torch.nn.Module:
        plugins = Plugins.discover()
        weights = build_format(plugins, "hf").open(folder)
        found = counterpart_of(plugins, weights.config, model=name, what="it")
        model = found.on_meta()
        materialize(model, torch.device("cpu"))
        tensors = found.from_hf(weights, leave_out=(), what="it")
        model.load_state_dict({key: tensor.read() for key, tensor in tensors.items()})
        return model

    return built


@pytest.fixture
def differences() -> Callable[..., dict[str, float]]:
    """``differences(model, theirs, table, tokens)``: relative differences of the logits and of each gradient,
    by the names of files. ``stored`` gives the gradients of transformers' model those names."""
    from hekaton.weights import whole

    def compared(
        model: torch.nn.Module,
        theirs: torch.nn.Module,
        table: Any,
        tokens: torch.Tensor,
        *,
        stored: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] = dict,
    ) -> dict[str, float]:
        logits, expected = model(tokens), theirs(tokens).logits
        weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
        for one in (logits, expected):
            (one * weights).mean().backward()
        own = {name: parameter.grad for name, parameter in model.named_parameters()}
        own |= {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
        got = table.to_hf({name: whole(one) for name, one in own.items()}, what="gradients")
        gradients = stored({name: parameter.grad for name, parameter in theirs.named_parameters()})
        assert gradients.keys() == {name for name in got if "e_score_correction_bias" not in name}
        found = {name: relative(got[name].read(), one) for name, one in gradients.items()}
        return {"logits": relative(logits, expected), **found}

    return compared


@pytest.fixture
def assert_equal(differences: Callable[..., dict[str, float]]) -> Callable[..., None]:
    """Like ``differences``, which must be those of rounding in float32: 1e-5 of logits, 1e-4 of gradients."""

    def compare(*arguments: Any, **options: Any) -> None:
        found = differences(*arguments, **options)
        wrong = {name: one for name, one in found.items() if not one <= (1e-5 if name == "logits" else 1e-4)}
        assert not wrong, wrong

    return compare


def varlen_by_definition(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    starts_of_keys: torch.Tensor,
    longest: int,
    longest_of_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch's documentation says of ``varlen_attn``, a sequence at a time, on any device."""
    assert starts is starts_of_keys
    assert starts.dtype == torch.int32
    assert longest == longest_of_keys
    assert enable_gqa == (q.shape[1] != k.shape[1])
    before, after = window_size
    out = []
    for start, end in itertools.pairwise(starts.tolist()):
        assert 0 < end - start <= longest
        heads = (x[start:end].transpose(0, 1) for x in (q, k, v))
        at = torch.arange(end - start)
        back = at[:, None] - at
        mask = torch.ones_like(back, dtype=torch.bool)
        mask = mask & (back <= before) if before >= 0 else mask
        mask = mask & (-back <= after) if after >= 0 else mask
        result = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        out.append(result.transpose(0, 1))
    return torch.cat(out)


@pytest.fixture
def backends_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Inside of ``backends_on_cpu()`` FlexAttention runs without its kernels, and so without a backward, and
    variable-length attention as it is defined."""
    from torch.nn.attention.flex_attention import flex_attention

    from hekaton_blocks import documents

    @contextlib.contextmanager
    def inside() -> Iterator[None]:
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.setattr(documents, "_compiled_flex_attention", lambda: flex_attention)
            patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_by_definition)
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            yield

    return inside


@pytest.fixture
def check_packing(
    backends_on_cpu: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[..., None]:
    """``check_packing(model, lengths)``: in a packed row each document has the logits that it has alone, and
    nothing that is changed in the first one changes another's, by every attention backend."""
    from hekaton_blocks import DocumentAttention

    @torch.no_grad()
    def check(model: torch.nn.Module, lengths: Sequence[int], *, within: float = 1e-4) -> None:
        layers = [module for module in model.modules() if isinstance(module, DocumentAttention)]
        requires = {what for layer in layers for what in layer.requires}
        able = [name for name, one in DocumentAttention.backends.items() if requires <= set(one.supports)]
        assert {"sdpa", "flex"} <= set(able)
        for backend in (None, *able):
            for layer in layers:
                layer.backend = backend
            with backends_on_cpu():
                check_one(model, lengths, within=within)

    def check_one(model: torch.nn.Module, lengths: Sequence[int], *, within: float) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, 101, (1, sum(lengths)), generator=generator)
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        packed = model(tokens, positions, ids)
        alone = torch.cat([model(document) for document in tokens.split(list(lengths), dim=1)], dim=1)
        torch.testing.assert_close(packed, alone, rtol=within, atol=within)
        first = lengths[0]
        other = tokens.clone()
        other[:, :first] = (other[:, :first] + 1) % 101
        changed = model(other, positions, ids)
        # Not bit for bit: an expert multiplies the tokens of all documents as one matrix.
        torch.testing.assert_close(changed[:, first:], packed[:, first:], rtol=1e-5, atol=1e-5)
        assert (changed[:, :first] - packed[:, :first]).abs().amax(-1).min() > 1e-3

    return check


@pytest.fixture
def counted_flops() -> Callable[[torch.nn.Module, int], float]:
    """``counted_flops(model, seq)``: floating-point operations per token of a forward and backward, as torch
    counts them: the masked part of attention included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    def counted(model: torch.nn.Module, seq: int) -> float:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(torch.zeros(1, seq, dtype=torch.long)).sum().backward()
        return counter.get_total_flops() / seq

    return counted


@pytest.fixture
def outputs_of_layers() -> Callable[..., dict[str, torch.Tensor]]:
    """``outputs_of_layers(model, layers, names, *inputs)``: what each attention and feed-forward layer gives,
    in order; ``names`` has their names in the result -> those of the model."""

    @torch.no_grad()
    def outputs(
        model: torch.nn.Module,
        layers: Sequence[torch.nn.Module],
        names: dict[str, str],
        *inputs: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        hooks = []
        for number, layer in enumerate(layers):
            for name, called in names.items():
                module = getattr(layer, called, None)
                of_other_kind = called == "feed_forward" and hasattr(module, "router") != (name == "moe")
                if module is None or of_other_kind:
                    continue

                def keep(_: Any, __: Any, out: Any, name: str = f"layers.{number}.{name}") -> None:
                    found[name] = out[0] if isinstance(out, tuple) else out

                hooks.append(module.register_forward_hook(keep))
        model(*inputs)
        for hook in hooks:
            hook.remove()
        assert len(found) == 2 * len(layers)
        return found

    return outputs


@pytest.fixture
def first_difference() -> Callable[..., str]:
    """``first_difference(got, expected)``: the first layer whose output differs; empty where none does."""

    def first(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> str:
        assert got.keys() == expected.keys()
        differing = (name for name, out in got.items() if relative(out, expected[name].view_as(out)) > 1e-4)
        return next(differing, "")

    return first
