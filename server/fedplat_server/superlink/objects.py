"""Flower's object store with owners: a silo reads only what was sent to it, writes only what is its own."""

from __future__ import annotations

from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError, iterate_object_tree
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from fedplat_server.superlink.caller import NotYours, caller_node_id

# A message of ours is a chain of three objects: the message, its record dict, one config record. All content is in
# the last one, so only that one travels beside the message's head: one request instead of three.
_CHAIN_LENGTH = 3


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
            if len(ids) > _CHAIN_LENGTH or content_id(object_tree) is None:
                raise NotYours("a message of that shape is not one of ours")
            if any(i in self.store and self._writer.get(i) != caller for i in ids):
                raise NotYours("an object of this message belongs to someone else")
            self._writer.update(dict.fromkeys(ids, caller))
            return super().preregister(run_id, object_tree)

    def get(self, object_id: str) -> bytes | None:
        caller = caller_node_id.get()
        if caller is not None and caller not in self._readers.get(object_id, ()):
            raise NotYours("that object was not sent to this silo")
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

    def content(self, message_id: str) -> bytes | None:
        """The content of a message, once it has arrived."""
        with self.lock_store:
            if message_id not in self.store:
                return None
            leaf = content_id(self.get_object_tree(message_id))
            return (self.store[leaf].content or None) if leaf else None


def content_id(object_tree: ObjectTree) -> str | None:
    """The id of the record at the end of a message's chain; None if it is not a chain."""
    while object_tree.children:
        if len(object_tree.children) != 1:
            return None
        object_tree = object_tree.children[0]
    return str(object_tree.object_id)


def inflate_content(content: bytes) -> ConfigRecord:
    """The record; ValueError for what is none."""
    try:
        return ConfigRecord.inflate(content)
    except (UnexpectedObjectContentError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a config record: {type(error).__name__}") from error
