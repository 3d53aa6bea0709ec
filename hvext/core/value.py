"""Value objects: frozen, made by keywords alone, equal when their fields are.

``@value_object`` is for its users what ``@dataclass(frozen=True, kw_only=True)`` is, and mypy and pyright read it so.
It is here because of start-up: the library writes the methods of each class as source and compiles it, and loads
``inspect`` for that, so that the values of one command took as long as all the rest of it. Here classes share them.

Fields are kept in ``__dict__`` and not in slots: a class gets slots only by being made a second time, which costs
start-up again, and ``super()`` and whoever has the first one would go wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter

# Not typing's own: to load it takes a third of the time that Python itself takes to start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    _Value = TypeVar("_Value")
else:

    def dataclass_transform(**_settings):  # noqa: D103
        return lambda decorator: decorator


#: The default of a field that has none.
MISSING: Any = object()
_FIELDS = "__value_fields__"


class Field:
    """One field of a value: its name, its default or what makes one, and whether ``repr`` shows it."""

    __slots__ = ("default", "default_factory", "name", "repr")

    def __init__(self, name: str, default: Any, default_factory: Any, show: bool) -> None:
        self.name = name
        self.default = default
        self.default_factory = default_factory
        self.repr = show


def field(*, default: Any = MISSING, default_factory: Any = MISSING, repr: bool = True) -> Any:  # noqa: A002
    """Return what stands for a field's default in the class: a value, or a function that is called for each object."""
    if default is not MISSING and default_factory is not MISSING:
        raise ValueError("a field has a default or a default_factory, not both")
    return Field("", default, default_factory, repr)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def value_object(cls: type[_Value]) -> type[_Value]:
    """Turn a class with annotations into one of value objects; what it defines itself stays as it is.

    ``__post_init__`` is called when all fields are set; it may change them with ``object.__setattr__``. Fields of base
    classes that are values come first. Raises TypeError for a default that could change.
    """
    mine = _own_fields(cls)
    inherited = [getattr(base, _FIELDS) for base in cls.__mro__[:0:-1] if _FIELDS in base.__dict__]
    every: dict[str, Field] = {}
    for some in (*inherited, mine):
        every |= some
    compared = attrgetter(*every) if every else _nothing
    methods: dict[str, Any] = {
        "__init__": _initialiser(cls, every.values()),
        "__eq__": _equality(compared),
        "__hash__": lambda self: hash(compared(self)),
        "__repr__": _shown,
        "__setattr__": _refuse_assignment,
        "__delattr__": _refuse_deletion,
        "__replace__": replace,
        "__match_args__": (),
    }
    for name, method in methods.items():
        if cls.__dict__.get(name) is None:
            setattr(cls, name, method)
    setattr(cls, _FIELDS, every)
    return cls


def fields(of: object) -> tuple[Field, ...]:
    """Return the fields of a value, or of a class of values, in their order; raises TypeError for anything else."""
    found: dict[str, Field] | None = getattr(of, _FIELDS, None)
    if found is None:
        raise TypeError(f"{of!r} is no value and no class of values")
    return tuple(found.values())


def replace(instance: _Value, /, **changes: object) -> _Value:
    """Return a value like ``instance`` with other fields, checked as a new one is; ``copy.replace`` calls it, too."""
    make: Any = type(instance)
    own, every = instance.__dict__, getattr(make, _FIELDS, None)
    if every is None:
        raise TypeError(f"{instance!r} is no value")
    # There is more where a property was kept.
    kept = own if len(own) == len(every) else {name: own[name] for name in every}
    made: _Value = make(**(kept | changes))
    return made


def _own_fields(cls: type) -> dict[str, Field]:
    found = {}
    for name, annotation in cls.__annotations__.items():
        if str(annotation).startswith(("ClassVar", "typing.ClassVar")):
            continue
        given = cls.__dict__.get(name, MISSING)
        if isinstance(given, Field):
            found[name] = Field(name, given.default, given.default_factory, given.repr)
            if given.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, given.default)
        else:
            found[name] = Field(name, given, MISSING, True)
        if type(found[name].default).__hash__ is None:
            raise TypeError(f"{cls.__qualname__}.{name} has a default that can change: name a default_factory")
    return found


def _initialiser(cls: type, every: Iterable[Field]) -> Callable[..., None]:
    names = frozenset(each.name for each in every)
    defaults = {each.name: each.default for each in every if each.default is not MISSING}
    factories = [(each.name, each.default_factory) for each in every if each.default_factory is not MISSING]
    checked = hasattr(cls, "__post_init__")

    def __init__(self: Any, /, **given: Any) -> None:  # noqa: N807
        values = self.__dict__
        values.update(defaults)
        values.update(given)
        for name, factory in factories:
            if name not in given:
                values[name] = factory()
        if values.keys() != names:
            raise _wrong_names(cls, [each.name for each in every if each.name not in values], given.keys() - names)
        if checked:
            self.__post_init__()

    # In Python's own message about values without a name.
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    return __init__


def _wrong_names(cls: type, missing: list[str], unknown: Iterable[str]) -> TypeError:
    """Return the error for names that a class does not have, or needs and was not given, in Python's words."""
    for name in sorted(unknown):
        return TypeError(f"{cls.__qualname__}.__init__() got an unexpected keyword argument {name!r}")
    few = "argument" if len(missing) == 1 else "arguments"
    named = " and ".join(filter(None, (", ".join(map(repr, missing[:-1])), repr(missing[-1]))))
    return TypeError(f"{cls.__qualname__}.__init__() missing {len(missing)} required keyword-only {few}: {named}")


def _equality(compared: Callable[[Any], object]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        return compared(self) == compared(other)

    return __eq__


def _nothing(_self: object) -> tuple[()]:
    return ()


def _shown(self: Any) -> str:
    shown = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_assignment(_self: object, name: str, _value: object) -> None:
    raise AttributeError(f"cannot assign to field {name!r}")


def _refuse_deletion(_self: object, name: str) -> None:
    raise AttributeError(f"cannot delete field {name!r}")
