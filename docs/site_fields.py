"""What griffe, which reads the source without running it, does not see of our dataclasses: tables of their fields.

mkdocstrings loads this extension (mkdocs.yml). Each dataclass gets a section of its docstring that lists its fields,
with types and defaults: as arguments if it is one to build, whose fields are all named, else as attributes.
"""

import dataclasses
import importlib
from typing import Any

import griffe

from quietstar.runs.fields import Help

CONFIG = "transformers.PreTrainedConfig"
"""makes its subclasses dataclasses, without a decorator"""
NAMED = griffe.ExprKeyword("kw_only", "True")


class Fields(griffe.Extension):
    """Writes the fields of dataclasses into their docstrings."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Complete a class whose members have been read."""
        if any(isinstance(base, griffe.Expr) and base.canonical_path == CONFIG for base in cls.bases):
            made = griffe.ExprCall(griffe.ExprName("dataclasses.dataclass"), [NAMED])
            cls.decorators.append(griffe.Decorator(made, lineno=cls.lineno, endlineno=cls.lineno))
        decorators = [str(each.value) for each in cls.decorators]
        if cls.docstring is None or not any("dataclass" in each for each in decorators):
            return
        described = options(cls) or docstrings(cls)
        if described and not {"Args:", "Attributes:"} & set(cls.docstring.lines):
            title = "Args" if any("kw_only" in each for each in decorators) else "Attributes"
            listed = "\n".join(f"    {name}: " + text.replace("\n", "\n        ") for name, text in described.items())
            before, raises, after = cls.docstring.value.partition("\n\nRaises:")
            cls.docstring.value = f"{before}\n\n{title}:\n{listed}{raises}{after}"


def options(cls: griffe.Class) -> dict[str, str]:
    """Return the help texts of a class's options by name, its own first; their defaults become plain values.

    Fields inherited from transformers are not among them.
    """
    calls = [each.value for each in cls.attributes.values() if isinstance(each.value, griffe.ExprCall)]
    if not any(call.canonical_path == "quietstar.runs.fields.option" for call in calls):
        return {}
    fields = dataclasses.fields(getattr(importlib.import_module(cls.module.path), cls.name))
    ours = {field.name: field for field in fields if isinstance(field.metadata.get("help"), Help)}
    own = {name: ours[name] for name in cls.attributes if name in ours}
    for name, field in own.items():
        is_made = field.default_factory is not dataclasses.MISSING
        cls.attributes[name].value = repr(field.default_factory() if is_made else field.default)
    described = {name: field.metadata["help"] for name, field in (own | ours).items()}
    for name, text in described.items():
        if not all(each in text for each in text.choices):
            described[name] = f"{text}; one of {', '.join(text.choices)}"
    return described


def docstrings(cls: griffe.Class) -> dict[str, str]:
    """Return the docstrings of a class's fields by name, and take them from the fields, which need no entries then."""
    described = {}
    for name, each in cls.attributes.items():
        is_field = each.annotation is not None and "property" not in each.labels and not name.startswith("_")
        if is_field and each.docstring is not None:
            described[name] = each.docstring.value
            each.docstring = None
    return described
