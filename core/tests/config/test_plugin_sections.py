"""Sections that plugins contribute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import Field, model_validator

from hekaton.config import JobConfig, SectionModel
from hekaton.config.base import section_class
from hekaton.config.job import config_class
from hekaton.contributions import Ref, Section, hookimpl
from hekaton.errors import HekatonError
from hekaton.plugins import Plugins


class Float8(SectionModel):
    recipe: str = "rowwise"


class Inner(SectionModel):
    depth: int = 2


class Outer(SectionModel):
    width: int = 1


class Demanding(SectionModel):
    needed: int


class Divides(SectionModel):
    share: float = Field(default_factory=lambda: 1 / 0)


class Undefined(SectionModel):
    what: NoWord = None  # noqa: F821


class Refuses(SectionModel):
    @model_validator(mode="after")
    def never(self):
        raise RuntimeError("never")


class NoSection:
    pass


def plugins(**sections: str) -> Plugins:
    """A plugin that contributes these sections: path (with ``__`` for dots) -> class of this module."""

    @hookimpl
    def hekaton_sections():
        records = sections.items()
        return [Section(path.replace("__", "."), schema=Ref(f"{__name__}:{name}")) for path, name in records]

    found = Plugins()
    found.register(SimpleNamespace(hekaton_sections=hekaton_sections, __name__="mine"), name="mine")
    found.check()
    return found


def extended(**sections: str) -> type[JobConfig]:
    config, problems = config_class(plugins(**sections))
    assert problems == []
    return config


def problem(**sections: str) -> HekatonError:
    config, problems = config_class(plugins(**sections))
    assert config is JobConfig
    (only,) = problems
    return only


def test_a_plugin_adds_a_section():
    config = extended(pocket="Outer")()
    assert config.section("pocket") == Outer()
    assert config.pocket.width == 1
    assert config.training == JobConfig().training


def test_a_section_replaces_one_that_was_there_for_compatibility():
    config = extended(quantize__linear__float8="Float8")
    assert config().section("quantize.linear.float8") == Float8()
    assert config().section("quantize.linear.mx") == JobConfig().section("quantize.linear.mx")
    loaded = config.model_validate({"quantize": {"linear": {"float8": {"recipe": "tensorwise"}}}})
    assert loaded.quantize.linear.float8.recipe == "tensorwise"


def test_sections_within_sections():
    config = extended(
        new__deep__inner="Inner", pocket="Outer", pocket__inner="Inner", optimizer__mine="Inner"
    )()
    assert config.section("new.deep.inner").depth == 2
    assert config.section("pocket").width == 1
    assert config.section("pocket.inner").depth == 2
    assert config.section("optimizer.mine").depth == 2
    assert config.optimizer.lr == JobConfig().optimizer.lr


def test_the_core_itself_stays_as_it_is():
    extended(pocket="Outer")
    assert "pocket" not in JobConfig.model_fields
    with pytest.raises(KeyError, match="pocket"):
        JobConfig().section("pocket")


@pytest.mark.parametrize("path", ["training", "training__dataloader"])
def test_a_section_of_the_core_cannot_be_taken(path):
    error = problem(**{path: "Outer"})
    assert str(error) == (
        f"section '{path.replace('__', '.')}' of plugin 'mine' (unpackaged) has the name of a section of "
        "hekaton itself\n  a plugin's section needs a path of its own\n"
        "  or leave the plugin out: HEKATON_DISABLE=mine"
    )


@pytest.mark.parametrize("path", ["training__steps", "training__steps__deep"])
def test_a_field_of_the_core_cannot_be_taken(path):
    assert "has the name of a field of hekaton itself" in str(problem(**{path: "Outer"}))


def test_every_field_of_a_section_needs_a_default():
    assert str(problem(pocket="Demanding")) == (
        "section 'pocket' of plugin 'mine' (unpackaged): 'needed' has no default\n"
        "  every field of a section needs a default\n"
        "  or leave the plugin out: HEKATON_DISABLE=mine"
    )


def test_a_schema_that_is_not_a_section_is_rejected():
    assert "its schema is no subclass of SectionModel but <class" in str(problem(pocket="NoSection"))


def test_a_schema_that_does_not_exist_is_rejected():
    said = str(problem(pocket="Nowhere"))
    assert said.startswith("section 'pocket' of plugin 'mine' (unpackaged): cannot load")
    assert said.endswith("\n  leave the plugin out: HEKATON_DISABLE=mine")


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("Divides", "ZeroDivisionError: division by zero"),
        ("Undefined", "PydanticUserError: `Undefined` is not fully defined"),
        ("Refuses", "RuntimeError: never"),
    ],
)
def test_a_section_that_cannot_be_made_of_its_defaults_is_said_with_its_plugin(schema, said):
    expected = f"section 'pocket' of plugin 'mine' (unpackaged): it cannot be made of its defaults: {said}"
    assert str(problem(pocket=schema)).startswith(expected)


class MoreValidation(SectionModel):
    images: int = 3
    """How many images are shown."""


class Clashing(SectionModel):
    freq: int = 3


def joined(schema: str, path: str) -> Plugins:
    @hookimpl
    def hekaton_sections():
        return [Section("more", schema=Ref(f"{__name__}:{schema}"), joins=path)]

    found = Plugins()
    found.register(SimpleNamespace(hekaton_sections=hekaton_sections, __name__="mine"), name="mine")
    found.check()
    return found


def test_fields_join_a_section_of_the_core():
    config, problems = config_class(joined("MoreValidation", "validation"))
    assert problems == []
    read = config.model_validate({"validation": {"images": 5, "freq": 7}})
    assert (read.validation.images, read.validation.freq, read.validation.steps) == (5, 7, -1)
    assert config().validation.images == 3
    assert "more" not in config.model_fields
    assert "images" not in JobConfig.model_fields["validation"].annotation.model_fields
    field = section_class(config.model_fields["validation"]).model_fields["images"]
    assert field.description == "How many images are shown."


@pytest.mark.parametrize(
    ("schema", "path", "message"),
    [
        ("Clashing", "validation", "joins 'validation' with a field 'freq', which that has already"),
        ("MoreValidation", "valediction", "joins 'valediction', which is no section of hekaton's"),
    ],
)
def test_fields_that_cannot_join_are_a_problem(schema, path, message):
    config, problems = config_class(joined(schema, path))
    assert config is JobConfig
    assert message in str(problems[0])
