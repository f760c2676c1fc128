from typing import Any, Callable

class Read:
    def __init__(
        self,
        key: str,
        state_key: str,
        guards: dict[int | None, Any],
        slots: tuple[Any, ...],
        otherwise: Callable[[Any, Any, Any], Any],
        /,
    ) -> None: ...
    def __call__(self, attribute: Any, instance: Any, owner: Any) -> Any: ...
