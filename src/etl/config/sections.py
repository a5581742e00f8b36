"""A YAML file as a mapping of plain values. Apart, as the library is imported only where there is such a file."""

from __future__ import annotations

from typing import Any

import yaml


class NotYamlError(ValueError):
    """Raised for a text that is no such file; says why without repeating any of it. `line`: where, if known."""

    def __init__(self, what: str, line: int | None = None) -> None:
        super().__init__(what)
        self.line = line


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped library
    """Refuses a name that is there twice: the second would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: list[object] = []
        for key, _ in node.value:
            if key.value in seen:
                raise NotYamlError(f"{key.value} is set twice", key.start_mark.line + 1)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def load(text: str) -> dict[Any, Any]:
    """Return what a text says, nothing for an empty one. Raises NotYamlError."""
    try:
        data = yaml.load(text, Loader=_Loader) or {}  # noqa: S506 - it is a SafeLoader
    except NotYamlError:
        raise
    except yaml.MarkedYAMLError as error:
        raise NotYamlError("is not YAML", error.problem_mark and error.problem_mark.line + 1) from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError):  # `!!int ''`, `!!bool x` and such
        raise NotYamlError("is not YAML") from None
    if not isinstance(data, dict):
        raise NotYamlError("must be sections with names in them")
    return data
