"""What `[parameters]` of a model's file says to a ready-made class: checked like settings, unknown names refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from torpor.predictors.settings import Setting, SettingError


class Parameters:
    """One class's table, read name by name; `end` refuses what is left. owner: the class, for messages."""

    def __init__(self, owner: str, table: Mapping[str, Any]) -> None:
        self._owner = owner
        self._table = table
        self._known: list[str] = []

    def one(
        self,
        name: str,
        default: Any,
        low: float | None = None,
        high: float | None = None,
        choices: tuple[str, ...] = (),
    ) -> Any:
        """A value of the default's type within its range, or one of the choices. Raises SettingError."""
        self._known.append(name)
        value = self._table.get(name, default)
        return Setting(name, type(default), default, "", low=low, high=high, choices=choices).read(value, self._owner)

    def numbers(self, name: str, default: Sequence[float], low: float, high: float) -> tuple[Any, ...]:
        """A list of as many numbers as the default has, of its first one's type. Raises SettingError."""
        self._known.append(name)
        values = self._table.get(name, default)
        if not isinstance(values, list | tuple) or len(values) != len(default):
            raise SettingError(f"{self._owner}: {name} = {values!r}, must be a list of {len(default)} numbers")
        one = Setting(name, type(default[0]), default[0], "", low=low, high=high)
        return tuple(one.read(value, self._owner) for value in values)

    def sizes(self, name: str, default: int, high: int) -> tuple[int, ...]:
        """One size, a list of [height, width], or () for 0. Raises SettingError."""
        value = self._table.get(name, default)
        if isinstance(value, list | tuple):
            return self.numbers(name, (default, default), 1, high)
        size = self.one(name, default, 0, high)
        return (size,) if size else ()

    def words(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list of some of the default's words. Raises SettingError."""
        self._known.append(name)
        values = self._table.get(name, default)
        if not isinstance(values, list | tuple) or not values or not set(values) <= set(default):
            raise SettingError(f"{self._owner}: {name} = {values!r}, must be a list of some of {', '.join(default)}")
        return tuple(values)

    def end(self) -> None:
        """Everything that this class knows has been read. Raises SettingError."""
        for name in self._table:
            if name not in self._known:
                known = ", ".join(sorted(self._known))
                raise SettingError(f"{self._owner}: parameter {name} is unknown, must be one of {known}")
