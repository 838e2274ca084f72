"""The backend of the harness: what it asks of a language model, answered on any layout."""

from __future__ import annotations

import atexit
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from hekaton.data import RendersChats, TextTokenizer
from hekaton.errors import ConfigError
from hekaton.loaded_model import LoadedModel
from hekaton.scoring.forward import Forward
from hekaton.scoring.texts import Scored, TextPair, continuations, log_likelihoods
from hekaton_eval.generation import wanted
from hekaton_eval.opened import opened
from hekaton_eval.tokens import Tokens

log = logging.getLogger("hekaton")

POSITIONS = 2048
"""Of a model that does not say how long its texts may be, as in the harness."""


class ScoringLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """A model behind the interface of the harness.

    Every process of a layout has one and is asked the same; texts are shared out inside. So the harness sees
    a single process, and each process computes the same results.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: TextTokenizer,
        *,
        vocab_size: int,
        max_length: int | None,
        ends: Sequence[int],
        batch_size: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        """:param vocab_size: rows of the model's output.
        :param max_length: tokens of the longest text; longer ones lose their beginning.
        :param ends: ids that end a text.
        :param batch_size: texts that a process computes at once; chosen by their length where it is ``None``.
        :param max_gen_toks: tokens that are generated where a task does not say how many.
        :param add_bos_token: begin texts with it, or not; by default as the tokenizer is published.
        :param seed: of tokens that are drawn.
        :param quiet: show no progress.
        """
        super().__init__()
        self.tokens = Tokens(tokenizer, add_bos_token=add_bos_token)
        self.max_length = max_length or POSITIONS
        self.max_gen_toks = max_gen_toks
        self._forward = forward
        self._ids = tokenizer.vocab_size
        self._vocab_size = vocab_size
        self._ends = frozenset(ends)
        self._batch_size = batch_size
        self._seed = seed
        self._quiet = quiet
        self._device = forward.device

    def check(self, tasks: Mapping[str, Any], *, chats: bool) -> None:
        """Before anything is computed: there is room for generated answers, and a template for chats.

        :raises ConfigError: where there is none.
        """
        for task in tasks.values():
            if task.get_config("output_type") == "generate_until":
                arguments = task.get_config("generation_kwargs") or {}
                self._room(wanted(arguments, most=self.max_gen_toks).most)
        if chats:
            self._chats().chat_template()

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eot_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.tokens.prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokens.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokens.encode(string, marks=add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(
            requests, disable_tqdm=disable_tqdm or self._quiet
        )
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._fitted(context, continuation) for _, context, continuation in requests]
        cut = sum(len(one.context) < len(its[1]) for one, its in zip(asked, requests, strict=True))
        if cut:
            log.warning("%d of %d contexts lose their beginning: the model has %s positions", cut,
                        len(asked), f"{self.max_length:,}")  # fmt: skip
        scored = self._scored(asked, what="log-likelihoods", quiet=disable_tqdm)
        answers = [(one.log_likelihood, one.is_greedy) for one in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[TextPair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for context, continuation in map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            ):
                windows.append(TextPair(context, continuation))
                owners.append(number)
        sums = [0.0] * len(requests)
        scored = self._scored(windows, what="rolling log-likelihoods", quiet=disable_tqdm)
        for owner, one in zip(owners, scored, strict=True):
            sums[owner] += one.log_likelihood
        for request, found in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        answers = [""] * len(requests)
        for numbers in groups.values():
            arguments = requests[numbers[0]].args[1]
            contexts = [requests[number].args[0] for number in numbers]
            generated = self._generated(contexts, arguments, quiet=disable_tqdm)
            for number, answer in zip(numbers, generated, strict=True):
                answers[number] = answer
                self.cache_hook.add_partial("generate_until", requests[number].args, answer)
        return answers

    def _generated(self, contexts: Sequence[str], arguments: dict[str, Any], *, quiet: bool) -> list[str]:
        asked = wanted(arguments, most=self.max_gen_toks, seed=self._seed)
        until = handle_stop_sequences(asked.until, eos=self.tokens.eot_text)
        prompts = self._prompts(contexts, asked.most)
        with self._progress("generated texts", len(prompts), quiet=quiet) as told:
            new = continuations(
                self._forward,
                prompts,
                room=[asked.most] * len(prompts),
                is_over=partial(self._is_over, until),
                sampling=asked.sampling,
                ids=self._ids,
                vocab_size=self._vocab_size,
                batch_size=self._batch_size,
                told=told,
            )
        return [postprocess_generated_text(self.tokens.decode(ids), until, None) for ids in new]

    def _room(self, most: int) -> int:
        """Tokens of a context before an answer of so many.

        :raises ConfigError: where no room is left for a context.
        """
        room = self.max_length - most
        if room < 1:
            raise ConfigError(
                f"{most:,} tokens are to be generated, and the model has {self.max_length:,} positions for "
                "context and answer together",
                hint="say --gen_kwargs max_gen_toks=N, or set generation_kwargs.max_gen_toks in the task",
            )
        return room

    def _prompts(self, contexts: Sequence[str], most: int) -> list[list[int]]:
        """:raises ConfigError: where no room is left for a context."""
        room = self._room(most)
        prompts = [self.tok_encode(context) or [self.prefix_token_id] for context in contexts]
        cut = sum(len(prompt) > room for prompt in prompts)
        if cut:
            log.warning("%d of %d contexts lose their beginning: the model has %s positions, of which %s are "
                        "for the answer", cut, len(prompts), f"{self.max_length:,}", f"{most:,}")  # fmt: skip
        return [prompt[-room:] for prompt in prompts]

    def _is_over(self, until: Sequence[str], number: int, new: Sequence[int]) -> bool:
        if new[-1] in self._ends:
            return True
        longest = max((len(stop) for stop in until), default=0)
        tail = self.tokens.decode(new[-longest - 8 :])
        return any(stop in tail for stop in until if stop)

    def _fitted(self, context: Sequence[int], continuation: Sequence[int]) -> TextPair:
        """:raises ConfigError: for an answer that is longer than the model's texts."""
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"an answer of {len(continuation):,} tokens is longer than the {self.max_length:,} positions "
                "of the model",
                hint="its log-likelihood cannot be computed: leave the task out",
            )
        over = len(context) + len(continuation) - self.max_length - 1
        return TextPair(context[max(0, over) :], continuation)

    def _scored(self, requests: Sequence[TextPair], *, what: str, quiet: bool) -> list[Scored]:
        with self._progress(what, len(requests), quiet=quiet) as told:
            return log_likelihoods(
                self._forward, requests, vocab_size=self._vocab_size, batch_size=self._batch_size, told=told
            )

    @contextlib.contextmanager
    def _progress(self, what: str, count: int, *, quiet: bool) -> Iterator[Callable[[int], object]]:
        with tqdm(total=count, desc=what, disable=quiet or self._quiet) as bar:
            yield bar.update

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._chats().render_chat(chat_history, ask=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._chats().chat_template() if chat_template else None

    def _chats(self) -> RendersChats:
        tokenizer = self.tokens.tokenizer
        if not isinstance(tokenizer, RendersChats):
            raise ConfigError(
                f"the tokenizer of this model ({type(tokenizer).__name__}) has no chat template",
                hint="evaluate without a chat template",
            )
        return tokenizer


@register_model("hekaton")
class HekatonLM(ScoringLM):
    """What ``lm_eval --model hekaton --model_args checkpoint=PATH`` builds.

    The arguments are those of :func:`hekaton_eval.opened.opened`, degrees of ``[parallelism]``
    (``tensor_parallel_degree=2``) under torchrun, and those of :class:`ScoringLM`.
    """

    def __init__(
        self,
        *,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        seed: int = 0,
        plugins: str = "",
        checkpoint: str | None = None,
        hf: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        hf_assets_path: str | None = None,
        model_name: str | None = None,
        model_flavor: str | None = None,
        leave_out: str = "",
        **parallelism: Any,
    ) -> None:
        """:param plugins: modules and ``.py`` files to load as plugins, and ``leave_out`` parts of a folder,
        with ``+`` between.
        :raises HekatonError: for what cannot be loaded.
        """
        from hekaton.plugins import Plugins

        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            log.info("notice: there is no CUDA device, the model is on the CPU")
            device = None  # lm_eval says cuda:0 where its user says nothing
        found = Plugins.discover(load=[name for name in plugins.split("+") if name])
        found.check()
        ending = contextlib.ExitStack()
        atexit.register(ending.close)
        loaded, forward = ending.enter_context(
            opened(
                found, parallelism=parallelism, device=device,
                checkpoint=checkpoint, hf=hf, dtype=dtype, hf_assets_path=hf_assets_path,
                model_name=model_name, model_flavor=model_flavor,
                leave_out=[name for name in leave_out.split("+") if name],
            )
        )  # fmt: skip
        super().__init__(
            forward,
            loaded.tokenizer,
            batch_size=batch_rows(batch_size, most=max_batch_size),
            max_gen_toks=max_gen_toks,
            add_bos_token=add_bos_token,
            seed=seed,
            **of_model(loaded, max_length=max_length),
        )


def of_model(loaded: LoadedModel, *, max_length: int | None) -> dict[str, Any]:
    """What a :class:`ScoringLM` needs to know of a model."""
    vocab_size = getattr(loaded.config, "vocab_size", None) or loaded.tokenizer.vocab_size
    positions = loaded.facts.positions
    if max_length is not None and positions is not None and max_length > positions:
        log.warning("max_length = %s is more than the %s positions that the model was trained for",
                    f"{max_length:,}", f"{positions:,}")  # fmt: skip
    return {
        "vocab_size": vocab_size,
        "max_length": max_length or positions,
        "ends": loaded.ends,
    }


_MOST_ROWS = 2**16


def batch_rows(said: int | str | None, *, most: int | None = None) -> int | None:
    """The rows of a batch, ``None`` for ``auto``.

    :raises ConfigError: for what is neither.
    """
    text = str(said or "auto")
    if text.startswith("auto"):
        return most
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:20]) <= _MOST_ROWS:
        raise ConfigError(f"batch_size = {text}: auto, or a number from 1 to {_MOST_ROWS:,}, was expected")
    return int(text)
