from typing import Any, Callable

from .guard import Guard
from .holds import Hold

#: Of what is looked for in objects of Python classes.
NAMES: tuple[str, ...]

class Adder:
    def __init__(self, plain: type, guarded: type, notice: Any, /) -> None: ...

class Adopter:
    def __init__(
        self,
        plain: type,
        guarded: type,
        manager: type,
        mutable: type,
        adopt_values: Any,
        line: Any,
        session: type,
        in_python: Any,
        /,
    ) -> None: ...

class Asker:
    def __init__(self, owners: dict[int, Any], introduce: Any, /) -> None: ...
    def __call__(self) -> Any: ...
    def forget(self) -> None: ...

class AtHand:
    def __init__(self, active: Any, otherwise: Any, /) -> None: ...

class Execute:
    def __init__(
        self,
        statements: Statements,
        function: Any,
        otherwise: Any,
        /,
    ) -> None: ...

class Look:
    def __init__(
        self,
        plain: dict[type, bool],
        otherwise: Any,
        defaults: dict[str, Any] = ...,
        types: frozenset[type] = ...,
        /,
    ) -> None: ...

class Maker:
    def __init__(self, plain: type, guarded: type, /) -> None: ...

class Operation:
    def __init__(
        self,
        runner: Runner,
        access: Any,
        function: Any,
        name: str,
        line: Any,
        which: int,
        parameter: str | None,
        path: tuple[str, ...],
        table: dict[int | None, Guard] | None,
        is_called: bool,
        finder: Callable[[Any], Guard | None] | None,
        is_refused: bool,
        usual: int,
    ) -> None: ...

class Read:
    def __init__(
        self, key: str, state_key: str, guards: dict[int | None, Any], otherwise: Any, /
    ) -> None: ...

class Runner:
    def __init__(
        self,
        run: Any,
        look: Any,
        own_error: type[Exception],
        note_failure: Any,
        leave_again: Any,
        accesses: tuple[Any, Any, Any],
        /,
    ) -> None: ...

class Setter:
    def __init__(
        self, settings: frozenset[str], line: Any, in_python: Any, /
    ) -> None: ...

class Statements:
    def __init__(self, *parts: Any) -> None: ...

class ValueSetter:
    def __init__(self, key: str, dispatch: Any, otherwise: Any, /) -> None: ...

class Write:
    def __init__(
        self,
        runner: Runner,
        state_key: str,
        guards: dict[int | None, Any],
        set: Any,
        otherwise: Any,
        /,
    ) -> None: ...

def know_guard(cls: type, closed: object, /) -> None: ...
def know_usual(*parts: Any) -> None: ...
def let_go(guard: Guard, hold: Hold, /) -> bool: ...
def take(guard: Guard, hold: Hold, /) -> bool: ...
