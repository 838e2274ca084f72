"""A trained model as :func:`hekaton.load` returns it, and the texts that it continues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hekaton.data import TextTokenizer
from hekaton.errors import ConfigError
from hekaton.generation import Token, stream
from hekaton.sampling import Sampling
from hekaton.spec import RunFacts, TrainSpec
from hekaton.weights.facts import ModelFacts


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model.

    :param source: the folder that it was read from.
    :param config: the model's own configuration.
    :param model: in eval mode, with its weights.
    :param facts: what is known of it beside that.
    """

    source: str
    spec: TrainSpec
    config: Any
    model: nn.Module
    tokenizer: TextTokenizer
    facts: ModelFacts

    def __str__(self) -> str:
        first = next(self.model.parameters())
        count = sum(parameter.numel() for parameter in self.model.parameters())
        kind = str(first.dtype).removeprefix("torch.")
        return f"{self.spec.name}, {count:,} parameters in {kind} on {first.device.type}"

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a text: those that the weights came with, else the tokenizer's."""
        if self.facts.tokens is not None:
            return self.facts.tokens.eos_ids
        return () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, after the mark that documents begin with in training.

        :raises ConfigError: for what is no text.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a text was expected, not {type(text).__name__}")
        ids: list[int] = self.tokenizer.encode_batch([text])[0].tolist()
        return ids if self.tokenizer.bos_id is None else [self.tokenizer.bos_id, *ids]

    def generate(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """What the model continues a text with, as ``hekaton generate`` does.

        :param max_new_tokens: at most; the text may end before, and ends with the model's positions.
        :param temperature: logits are divided by it; 0 takes the most likely token.
        :param top_k: draw among so many of the most likely tokens; :param top_p: among the most likely ones
            whose probabilities sum to it.
        :raises ConfigError: for a text that leaves no position, and a model that predicts no next token.
        """
        tokens = self.stream(
            [self.encode(text)], max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        )  # fmt: skip
        return self.tokenizer.decode([token.id for token in tokens if token.id not in self.ends])

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
    ) -> Iterator[Token]:
        """Continue prompts of token ids, and give each new token as it comes: the number of its prompt, its
        id, and whether the text ends with it. The arguments are those of :meth:`generate`.

        :param batch_size: prompts that are continued together, which changes no text.
        :raises ConfigError: as :meth:`generate`, and for an id that the model does not have.
        """
        rows = getattr(self.config, "vocab_size", None)
        for number, prompt in enumerate(prompts, 1):
            if rows is not None and not all(0 <= one < rows for one in prompt):
                raise ConfigError(f"prompt {number}: the ids of this model are 0 to {rows - 1}")
        positions = self.facts.positions
        tokens = stream(
            self.model, prompts, max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed), ends=self.ends,
            cache=self.spec.cache, positions=positions, ids=self.tokenizer.vocab_size, batch_size=batch_size,
        )  # fmt: skip
        longest = max(map(len, prompts), default=0) + max_new_tokens
        self.check_length(longest if positions is None else min(longest, positions))
        return tokens

    def check_length(self, length: int) -> None:
        """Check that the model predicts next tokens, in texts of so many.

        :raises ConfigError: where it does not.
        """
        if self.spec.objective != "next_token" and self.spec.cache is None:
            raise ConfigError(
                f"cannot generate: model '{self.spec.name}' is trained for '{self.spec.objective}', not for "
                "the next token"
            )
        facts = RunFacts(seq_len=length, packed=False)
        for refusal in self.spec.check(self.config, facts) if self.spec.check is not None else ():
            raise ConfigError(
                f"{self.spec.name} {refusal.message}", hint="give fewer tokens, or --max_new_tokens"
            )
