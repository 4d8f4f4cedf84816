"""Flower's in-memory link state with three changes: owners are checked, what is lost is sent again, and nodes keep
their ids over a restart (our SQL owns the truth, this is a cache of it)."""

from __future__ import annotations

from collections.abc import Callable, Set

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.superlink.federation import NoOpFederationManager

from fedplat_server.superlink.caller import NotYours, caller_node_id, require_self
from fedplat_server.superlink.objects import OwnedObjectStore


class GuardedLinkState(InMemoryLinkState):
    """`on_reply` is called (from the thread of the request) whenever a reply may have become complete."""

    def __init__(self, on_reply: Callable[[], None]) -> None:
        self.objects = OwnedObjectStore()
        super().__init__(NoOpFederationManager(), self.objects)
        self._on_reply = on_reply
        self._session_owner: dict[str, int] = {}

    # -- nodes ------------------------------------------------------------------------------------------------

    def restore_node(self, node_id: int, public_key: bytes) -> None:
        """Register a node under the id and key that our database has for it."""
        with self.lock:
            old = self.nodes.get(node_id)
            if old is not None:
                self.node_public_key_to_node_id.pop(old.public_key, None)
            self.nodes[node_id] = NodeInfo(
                node_id=node_id,
                owner_aid="fedplat",
                owner_name="fedplat",
                status=NodeStatus.OFFLINE,
                registered_at=now().isoformat(),
                public_key=public_key,
            )
            self.node_public_key_to_node_id[public_key] = node_id

    def forget_node(self, node_id: int) -> None:
        """Remove a revoked node and what waits for it."""
        with self.lock:
            node = self.nodes.pop(node_id, None)
            if node is not None:
                self.node_public_key_to_node_id.pop(node.public_key, None)
            waiting = {m for m, msg in self.message_ins_store.items() if msg.metadata.dst_node_id == node_id}
        self.discard(waiting)

    # -- what a silo asks, through Flower's handlers ------------------------------------------------------------

    def get_message_ins(self, node_id: int, limit: int | None, *, run_id: int | None = None) -> list[Message]:
        require_self(node_id, "this inbox")
        return super().get_message_ins(node_id, limit, run_id=run_id)

    def start_session(self, run_id: int) -> str:
        caller = caller_node_id.get()
        if caller is None:
            return super().start_session(run_id)
        with self._lock_object_push_sessions:
            # One at a time: signed nonsense must not pile up sessions.
            for session in [s for s, owner in self._session_owner.items() if owner == caller]:
                del self._session_owner[session]
                self._cleanup_push_session(session, cleanup_messages=False)
            session_id = super().start_session(run_id)
            self._session_owner[session_id] = caller
            return session_id

    def store_message_res(self, message: Message) -> str | None:
        require_self(message.metadata.src_node_id, "this reply's sender")
        question = self.message_ins_store.get(message.metadata.reply_to_message_id)
        if question is not None:
            require_self(question.metadata.dst_node_id, "the question of this reply")
            self._drop_unfinished_reply(message.metadata.reply_to_message_id)
        return super().store_message_res(message)

    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        caller = caller_node_id.get()
        if caller is not None and self._session_owner.get(session_id) != caller:
            raise NotYours("that upload session is not this silo's")
        stored = super().store_object(run_id, session_id, object_id, object_content)
        if caller is not None and stored:
            self._on_reply()
        return stored

    def _drop_unfinished_reply(self, question_id: str) -> None:
        """A silo that was killed between its reply's head and body sends both again."""
        with self.lock:
            reply_id = self.message_ins_id_to_message_res_id.get(question_id)
            if reply_id is not None and self.objects.content(reply_id) is None:
                del self.message_ins_id_to_message_res_id[question_id]
                self.message_res_store.pop(reply_id, None)

    # -- what the server asks ---------------------------------------------------------------------------------

    def finished_reply(self, question_id: str) -> bytes | None:
        """The content of a reply, once it is there. Whether its sender is online does not matter."""
        with self.lock:
            reply_id = self.message_ins_id_to_message_res_id.get(question_id)
            return self.objects.content(reply_id) if reply_id is not None else None

    def discard(self, question_ids: Set[str]) -> None:
        """Delete questions, their replies and all their objects."""
        with self.lock:
            replies = [self.message_ins_id_to_message_res_id.get(q) for q in question_ids]
            self.delete_messages(set(question_ids))
        for object_id in [*question_ids, *(r for r in replies if r)]:
            self.objects.delete(object_id)

    def has_work(self, node_id: int, holding: Set[str]) -> bool:
        """Whether a message waits for a node. What was delivered, has no reply and is not held by the node was lost
        on the way (Flower delivers at most once): it counts as not delivered."""
        with self.lock:
            work = False
            for message_id, message in self.message_ins_store.items():
                if message.metadata.dst_node_id != node_id or self.finished_reply(message_id) is not None:
                    continue
                if message.metadata.delivered_at and message_id not in holding:
                    message.metadata.delivered_at = ""
                work = work or not message.metadata.delivered_at
            return work

    def _cleanup_expired_task_tokens_locked(self) -> None:
        """Runs live in this process and end with it: they need no heartbeat."""
