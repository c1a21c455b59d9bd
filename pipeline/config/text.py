"""YAML as people expect it: no key twice, 3e-4 is a number, `no` is a word."""

import re
from typing import Any

import yaml

from pipeline.errors import ConfigError

BOOL, FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, and lets the last of equal keys win. DVC reads YAML 1.2, and so does this."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in (BOOL, FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise ConfigError(f"{key.value} is there twice, on lines {lines[key.value]} and {line}; delete one")
                lines[key.value] = line
        return node


_Loader.add_implicit_resolver(BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(
        r"""(?:[-+]?(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?  # 0.5
                   |[-+]?\d+[eE][-+]?\d+                         # 3e-4
                   |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def parse(text: str, origin: str) -> Any:
    """Return what the YAML `text` says. Raises ConfigError, which begins with `origin`, for what is not YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2026-13-13 is a ValueError
        raise ConfigError(f"{origin}: not valid YAML: {error}") from None
