"""What every section is made of: the base model, and the marks that say what becomes of a field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo

from hekaton.contributions import Contribution
from hekaton.paths import expanded

AtResumeMeaning: TypeAlias = Literal["nothing", "notice", "refusal"]

Path: TypeAlias = tuple[str, ...]
"""Where a field is: ``("training", "dataloader", "num_workers")``."""


def _not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("must be positive, or -1")
    return number


PositiveOrAll: TypeAlias = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]
"""A positive number, or -1, which stands for as many as there are."""


def _expanded(text: str) -> str:
    return text if "://" in text else expanded(text)


PathField: TypeAlias = Annotated[str, AfterValidator(_expanded)]
"""A path or a URL; ``~`` at its start is the home folder."""

MAX_PROCESSES = 2**20

Degree: TypeAlias = Annotated[int, Field(gt=0, le=MAX_PROCESSES)]
"""A degree of parallelism."""
DegreeOrRest: TypeAlias = Annotated[int, Field(ge=-1, le=MAX_PROCESSES), AfterValidator(_not_zero)]
"""A degree of parallelism, or -1 for what the others leave."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name is one line of printable characters")
    return text


Rows: TypeAlias = Annotated[int, Field(gt=0, le=2**20)]
"""Rows of a batch; each has a cursor of its own in every checkpoint."""
RowsOrAll: TypeAlias = Annotated[int, Field(ge=-1, le=2**20), AfterValidator(_not_zero)]
SeqLen: TypeAlias = Annotated[int, Field(gt=0, le=2**24)]
"""Tokens of a row: 16 million at most, above the longest that models have been trained on."""
Title: TypeAlias = Annotated[str, Field(max_length=100), AfterValidator(_printable)]
"""A name that a user gives, of one line: it stands in logs, and in the names of metrics."""
LONGEST_SECONDS = 366 * 24 * 3600
"""A time to wait is a year at most: what the libraries below count in does not overflow."""
Seconds: TypeAlias = Annotated[int, Field(gt=0, le=LONGEST_SECONDS)]


class SectionModel(BaseModel):
    """A section of the TOML file, the core's or a plugin's.

    It refuses unknown fields, values of another type (a string is no number, a float no integer) and lists
    that name something twice, cannot be changed once it is read, and takes the docstrings below its fields as
    their descriptions. Every field needs a default.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        defer_build=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @field_validator("*")
    @classmethod
    def _names_each_once(cls, value: Any) -> Any:
        """A name that is there twice would count once, and the one who wrote it may have meant another."""
        if isinstance(value, list):
            for name, times in Counter(item for item in value if isinstance(item, str)).items():
                if times > 1:
                    raise ValueError(
                        f"it names {toml_value(name)} {'twice' if times == 2 else 'several times'}"
                    )
        return value

    switch: ClassVar[str] = ""
    """Name of the boolean field without which the others have no effect."""
    at_resume: ClassVar[AtResumeMeaning] = "notice"
    """What a change of a field without a mark :class:`AtResume` means when a run resumes."""
    may_differ: ClassVar[str] = ""
    """Why the processes of a run may have different values of all fields, where they may."""


class CompatSection(SectionModel):
    """A section that run files for torchtitan have and the core does not. A plugin may take its place."""


@dataclass(frozen=True)
class NotYet:
    """The field is refused when it is set away from its default: ``feature`` is not available yet.

    :param feature: what the field belongs to, as the subject of a sentence.
    :param values: the values that are refused; when not given, all but the default.
    """

    feature: str
    values: tuple[object, ...] = ()


@dataclass(frozen=True)
class Renamed:
    """The field's value moves to another one.

    :param to: dotted path of the field that takes its place.
    """

    to: str


@dataclass(frozen=True)
class NoEffect:
    """The field is accepted and has no effect.

    :param reason: why, and what to use instead.
    """

    reason: str


@dataclass(frozen=True)
class OnlyWith:
    """The field has an effect only when another one of its section has certain values; of several such marks
    one must hold.

    :param field: the other field.
    :param values: the values that it must have one of.
    :param above: or the number that it must exceed.
    :param given: or whether it must be set at all.
    """

    field: str
    values: tuple[object, ...] = (True,)
    above: float | None = None
    given: bool = False

    def holds(self, value: Any) -> bool:
        if self.given:
            return value is not None
        if self.above is not None:
            return isinstance(value, int | float) and value > self.above
        return value in self.values

    def __str__(self) -> str:
        if self.given:
            return self.field
        if self.above is not None:
            return f"{self.field} above {self.above}"
        return f"{self.field} = {' or '.join(map(toml_value, self.values))}"


@dataclass(frozen=True)
class AtResume:
    """What a change of the field means when a run resumes from a checkpoint: nothing; a notice with both
    values and the step; or a refusal, until ``checkpoint.accept_changes`` names the field.

    A mark of fields of sections, and of those of a model's configuration (``Annotated[float,
    AtResume("refusal")]``).
    """

    meaning: AtResumeMeaning


@dataclass(frozen=True)
class MayDiffer:
    """The processes of a run may have different values of the field.

    :param reason: why that does no harm.
    """

    reason: str


@dataclass(frozen=True)
class NameOf:
    """The field names contributions of a kind, one or a list."""

    kind: type[Contribution]


Mark = TypeVar("Mark")


def marks(field: FieldInfo, kind: type[Mark]) -> list[Mark]:
    """The marks of one kind that a field has."""
    return [mark for mark in field.metadata if isinstance(mark, kind)]


def at_resume(field: FieldInfo, inside: tuple[type[SectionModel], ...]) -> AtResumeMeaning:
    """What a change of a field means at a resume.

    :param inside: the sections that it is in, outermost first.
    """
    own = marks(field, AtResume)
    return own[0].meaning if own else inside[-1].at_resume


def may_differ(field: FieldInfo, inside: tuple[type[SectionModel], ...]) -> str:
    """Why processes may have different values of a field; empty where they may not."""
    own = marks(field, MayDiffer)
    return own[0].reason if own else inside[-1].may_differ


def is_idle(field: FieldInfo) -> bool:
    """Whether a field never has an effect of its own."""
    return any(isinstance(mark, Renamed | NoEffect) for mark in field.metadata)


def is_path(field: FieldInfo) -> bool:
    """Whether a field holds a path or a list of them: it is declared with :data:`PathField`."""
    return any(_is_path(one) for one in (*field.metadata, field.annotation))


def _is_path(annotation: object) -> bool:
    if isinstance(annotation, AfterValidator):
        return annotation.func is _expanded
    return any(_is_path(one) for one in get_args(annotation))


def section_class(field: FieldInfo) -> type[SectionModel] | None:
    """The class of the section that a field holds, ``None`` for a plain value."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, SectionModel) else None


def walk(
    section: type[SectionModel], at: Path = ()
) -> Iterator[tuple[Path, FieldInfo, tuple[type[SectionModel], ...]]]:
    """Every plain field below a section: its path, itself, the sections that it is in, outermost first."""
    yield from _walk(section, at, (section,))


def _walk(
    section: type[SectionModel], at: Path, inside: tuple[type[SectionModel], ...]
) -> Iterator[tuple[Path, FieldInfo, tuple[type[SectionModel], ...]]]:
    for name, field in section.model_fields.items():
        inner = section_class(field)
        if inner is None:
            yield (*at, name), field, inside
        else:
            yield from _walk(inner, (*at, name), (*inside, inner))


def default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def dotted(path: Path) -> str:
    return ".".join(path)


def toml_value(value: object, *, width: int = 80) -> str:
    """A value as it is written in TOML, shortened to ``width`` characters."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    elif isinstance(value, list):
        text = f"[{', '.join(toml_value(item, width=width) for item in value)}]"
    elif isinstance(value, dict):
        text = (
            "{" + ", ".join(f"{key} = {toml_value(item, width=width)}" for key, item in value.items()) + "}"
        )
    else:
        text = "None" if value is None else str(value)
    return shortened(text, width)


def shortened(text: str, width: int = 80) -> str:
    """At most ``width`` characters of a text, with dots in place of the rest."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
