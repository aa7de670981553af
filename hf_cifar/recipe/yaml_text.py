"""The YAML of recipes, read within bounds and written back.

PyYAML's own loader takes `1e-3` for text, keeps the last of two equal keys, and lets aliases of
aliases multiply without end.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from hf_cifar.errors import UserError
from hf_cifar.text import visible

MOST_CHARACTERS = 200_000  # the parser takes two seconds for them
NUMBER_WITHOUT_DOT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, refuses a key that stands twice, and names the line of errors."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, IndexError):  # `!!bool x`, `2026-99-99`
            kind = node.tag.rpartition(":")[2]
            problem = f"{visible(node.value, most=80)} can't be read as {kind}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = set()
        for name, _ in node.value:
            problem = None
            if not isinstance(name, yaml.ScalarNode):
                problem = "a key must be a word"
            elif name.value in names:
                problem = f"key `{visible(name.value, most=80)}` stands twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            names.add(name.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` would take for a number, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", NUMBER_WITHOUT_DOT, list("-+0123456789")
    )


def read_yaml(text: str) -> Any:
    """Return the value of a YAML text. Raises UserError with the line (if known) and the problem.

    A text of more than 200,000 characters, counted with its aliases expanded, is refused.
    """
    if len(text) > MOST_CHARACTERS:
        raise UserError(f"more than {MOST_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if expanded_length(node, {}) > MOST_CHARACTERS:
            raise UserError(f"aliases expand to more than {MOST_CHARACTERS:,} characters")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(line + visible(problem, most=200)) from None
    except RecursionError:
        raise UserError("nested too deeply") from None


def expanded_length(node: yaml.Node, lengths: dict[int, float]) -> float:
    """Return the characters of `node` with aliases expanded; infinity if it holds itself."""
    if id(node) not in lengths:
        lengths[id(node)] = float("inf")  # stays so while its own children are counted
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        if isinstance(node, yaml.ScalarNode):
            length = 1.0 + len(node.value)
        else:
            length = 1.0 + sum(expanded_length(child, lengths) for child in children)
        lengths[id(node)] = length
    return lengths[id(node)]


def write_yaml(values: dict[str, Any] | list[Any]) -> str:
    """Return `values` as YAML that `read_yaml` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)
