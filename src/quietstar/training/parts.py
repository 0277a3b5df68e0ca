"""Parts of a training run: objects that keep something, know nothing of the trainer, and can be tested alone."""

from typing import Any


class Part:
    """Something that a run keeps. A part overrides what it needs of the four verbs.

    What must survive a checkpoint is in `state_dict`: tensors, numbers and texts, in lists and dictionaries. What a
    skipped step takes back is in `snapshot`.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this part."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""

    def snapshot(self) -> Any:
        """Return what a step may change and a skipped one takes back."""
        return None

    def rollback(self, snapshot: Any) -> None:
        """Go back to a `snapshot`."""


class Parts(dict[str, Part]):
    """The parts of a run by name; the same four verbs for all of them."""

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of all parts under their names."""
        return {name: part.state_dict() for name, part in self.items()}

    def load_state_dict(self, states: dict[str, dict[str, Any]]) -> None:
        """Load the state of each part that has one."""
        for name, state in states.items():
            self[name].load_state_dict(state)

    def snapshot(self) -> dict[str, Any]:
        """Return the snapshots of all parts."""
        return {name: part.snapshot() for name, part in self.items()}

    def rollback(self, snapshots: dict[str, Any]) -> None:
        """Roll all parts back."""
        for name, snapshot in snapshots.items():
            self[name].rollback(snapshot)
