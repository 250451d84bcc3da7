"""Commands: groups of options that several of them share, checks of arguments, and quiet exits."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_type_hints

from typer.core import TyperCommand, TyperGroup

from qmamba.cli._shared import quiet_ends
from qmamba.errors import ArgumentError


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command in which each parameter that is a group of options is replaced by these options.

    A group is a dataclass whose fields are declared as typer declares parameters. The function gets an
    instance of it.

    >>> @dataclasses.dataclass
    ... class Size:
    ...     width: int = 1
    ...     height: int = 1
    >>> def area(size: Size, unit: str = "px") -> None:
    ...     print(size.width * size.height, unit)
    >>> list(inspect.signature(with_groups(area)).parameters)
    ['width', 'height', 'unit']
    >>> with_groups(area)(width=3, height=2, unit="mm")
    6 mm
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _parameters(groups[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY  # a group may end in a default
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=kind))

    @functools.wraps(function)
    def command(**values: Any) -> None:
        for name, group in groups.items():
            fields = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{field: values.pop(field) for field in fields if field in values})
        function(**values)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )


class Command(TyperCommand):
    """A command that refuses empty arguments before it parses them.

    Otherwise ``qmamba score "$DIR"`` with DIR unset would score the current folder, for that is what an empty
    path means, and ``--out $FILE --force`` would write to a file called --force.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: param for param in self.params for name in (*param.opts, *param.secondary_opts)}
        flags = {name for name, param in options.items() if getattr(param, "is_flag", False)}
        check_arguments(args, set(options) - flags, {*options, *ctx.help_option_names})
        return super().parse_args(ctx, args)


def check_arguments(args: Sequence[str], with_value: set[str], options: set[str]) -> None:
    """Refuse empty arguments, and options in place of another option's value.

    Args:
        args: of a command.
        with_value: names of its options that take a value.
        options: names of all its options.

    Raises:
        ArgumentError: in one line, which names the option.
    """
    before = ""
    for argument in args:
        if argument == "--" and before not in with_value:
            with_value, options = set(), set()
        name, equals, value = argument.partition("=")
        if before in with_value:
            if argument in options:
                raise ArgumentError(f"{before} needs a value, got the option {argument}")
            if not argument:
                raise ArgumentError(f"{before} must have a value, got an empty one; is a variable unset?")
            argument = ""  # a value is followed by no value of its own
        elif not argument:
            raise ArgumentError("an argument is empty; give a path, or check whether a variable is unset")
        elif equals and not value and name in with_value and name.startswith("--"):
            raise ArgumentError(f"{name} must have a value, got an empty one; is a variable unset?")
        before = argument


class Program(TyperGroup):
    """A group of commands whose errors are one line, and which ends quietly when its output is closed."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with quiet_ends():  # of --version and --help
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with quiet_ends():
            return super().invoke(ctx)
