"""Parts of a training run: objects that keep something, know nothing of the trainer, and can be tested alone."""

from typing import Any, ClassVar


class Part:
    """Something that a run keeps.

    A checkpoint has its `state_dict`: tensors, numbers and texts, in lists and dictionaries. A bad step is rolled back
    to the `snapshot` before it; only TrainingFigures have sums that a step changes before it is known to be bad.

    Attributes:
        kept: names of the attributes that a checkpoint keeps; a part with more to do overrides the methods.
    """

    kept: ClassVar[tuple[str, ...]] = ()

    is_elsewhere = False
    """whether the first process keeps the state for this one, too"""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this part."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        for name in state.keys() & set(self.kept):
            setattr(self, name, state[name])

    def snapshot(self) -> Any:
        """Return what a step changes."""
        return None

    def rollback(self, snapshot: Any) -> None:
        """Go back to a `snapshot`."""


class Parts:
    """A group of parts: the methods of a Part, for every attribute that is one."""

    def by_name(self) -> dict[str, Part]:
        """Return name of the attribute -> part."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Part)}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of all parts under their names, without those that the first process keeps for all."""
        return {name: part.state_dict() for name, part in self.by_name().items() if not part.is_elsewhere}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Load the state of each part that has one."""
        for name, part in self.by_name().items():
            if name in states:
                part.load_state_dict(states[name])

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshots of all parts."""
        return {name: part.snapshot() for name, part in self.by_name().items()}

    def rollback(self, snapshots: dict[str, Any]) -> None:
        """Roll all parts back."""
        for name, part in self.by_name().items():
            part.rollback(snapshots[name])
