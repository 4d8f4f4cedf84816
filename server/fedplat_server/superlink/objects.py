"""Flower's object store with owners: a silo reads only what was sent to it, writes only what is its own."""

from __future__ import annotations

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from fedplat_server.superlink.caller import caller_node_id, forbid

# A message of ours is three objects: the message, its record dict, one config record.
MAX_OBJECTS_IN_MESSAGE = 8


class OwnedObjectStore(InMemoryObjectStore):
    """Content-addressed objects, each with the nodes that may read it and the node that wrote it."""

    def __init__(self) -> None:
        super().__init__(verify=True)
        self._readers: dict[str, set[int]] = {}
        self._writer: dict[str, int] = {}

    def allow(self, node_id: int, object_tree: ObjectTree) -> None:
        """Let a node read a message that the server sends to it."""
        with self.lock_store:
            for part in iterate_object_tree(object_tree):
                self._readers.setdefault(part.object_id, set()).add(node_id)

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """A silo may announce new objects and its own, never another's: it could adopt them unseen."""
        caller = caller_node_id.get()
        if caller is None:
            return super().preregister(run_id, object_tree)
        with self.lock_store:
            ids = [part.object_id for part in iterate_object_tree(object_tree)]
            if len(ids) > MAX_OBJECTS_IN_MESSAGE:
                raise forbid("a message of that many objects is not one of ours")
            if any(i in self.store and self._writer.get(i) != caller for i in ids):
                raise forbid("an object of this message belongs to someone else")
            self._writer.update(dict.fromkeys(ids, caller))
            return super().preregister(run_id, object_tree)

    def get(self, object_id: str) -> bytes | None:
        caller = caller_node_id.get()
        if caller is not None and caller not in self._readers.get(object_id, ()):
            raise forbid("that object was not sent to this silo")
        return super().get(object_id)

    def delete(self, object_id: str) -> None:
        """Only the server deletes: a silo that was killed after it confirmed must get its message again."""
        if caller_node_id.get() is not None:
            return
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                self._readers.pop(object_id, None)
                self._writer.pop(object_id, None)

    def is_complete(self, object_id: str) -> bool:
        """Whether the object and everything under it has arrived."""
        with self.lock_store:
            entry = self.store.get(object_id)
            return (
                entry is not None
                and entry.is_available
                and all(self.is_complete(child) for child in entry.child_object_ids)
            )

    def contents(self, object_id: str) -> dict[str, bytes]:
        """The object and everything under it, by id."""
        with self.lock_store:
            entry = self.store[object_id]
            found = {object_id: entry.content}
            for child in entry.child_object_ids:
                found |= self.contents(child)
            return found
