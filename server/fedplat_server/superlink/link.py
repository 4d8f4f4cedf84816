"""The door to Flower: silos in, messages out, replies back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass

from fedplat_server.superlink import quiet  # isort: skip  (first: it switches telemetry off)
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from fedplat.errors import ConflictError, WireError
from fedplat.wire.codec import RECORD
from fedplat_server.superlink.objects import inflate_content
from fedplat_server.superlink.state import GuardedLinkState

quiet.silence_flower()

# Deadlines are the coordinator's; a message lives until it is answered or withdrawn.
_TTL_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Outgoing:
    """One message to one node."""

    node_id: int
    message_type: str
    record: RecordDict


class Link:
    """Messages between runs (in this process) and silos (over the Fleet API).

    Thread-safe. `on_message(node_id)` is called after a message was stored for a node. `replies` is notified when a
    reply may be complete, and may be notified by others who want a waiting run to look up.
    """

    def __init__(self, on_message: Callable[[int], None] = lambda _node_id: None) -> None:
        self.replies = threading.Condition()
        self.on_message = on_message
        self.state = GuardedLinkState(self.wake_runs)

    def wake_runs(self) -> None:
        """Let every waiting run look at its replies and its silos."""
        with self.replies:
            self.replies.notify_all()

    # -- silos --------------------------------------------------------------------------------------------------

    def add_node(self, node_id: int, public_key_pem: str) -> None:
        """Let a silo in, under the id that it has had since its enrolment."""
        self.state.restore_node(node_id, public_key_pem.encode())

    def remove_node(self, node_id: int) -> None:
        """Shut a silo out; what waits for it is discarded."""
        self.state.forget_node(node_id)

    def has_work(self, node_id: int, holding: Set[str]) -> bool:
        """Whether a node should pull now."""
        return self.state.has_work(node_id, holding)

    # -- runs ---------------------------------------------------------------------------------------------------

    def open_run(self) -> int:
        """A Flower run without any app: nothing is shipped to a silo. Returns Flower's id for it."""
        run_id = self.state.create_run(
            "fedplat/run", "1", "0" * 64, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
        )
        task_id = self.state.get_run_info(run_ids=[run_id])[0].primary_task_id
        if task_id is None or not self.state.claim_task(task_id) or not self.state.activate_task(task_id):
            raise ConflictError("Flower did not start a run", hint="is flwr 1.41 installed?")
        return run_id

    def close_run(self, run_id: int) -> None:
        """Forget a run with its messages."""
        self.state.stop_run(run_id)

    def post(self, run_id: int, outgoing: Iterable[Outgoing]) -> dict[int, str]:
        """Store messages for their nodes; returns node id -> message id. Equal contents are hashed once."""
        posted: dict[int, str] = {}
        with no_object_id_recompute():
            for out in outgoing:
                posted[out.node_id] = self._post(run_id, out)
                self.on_message(out.node_id)
        return posted

    def _post(self, run_id: int, out: Outgoing) -> str:
        message = _message(run_id, out)
        tree = get_object_tree(message)
        session = self.state.start_session(run_id)
        head = remove_content_from_message(message)
        self.state.objects.allow(out.node_id, tree)
        stored, missing = self.state.store_message_and_object_tree(head, tree, session)
        if not stored:
            raise ConflictError("a message could not be stored", hint="was its silo revoked a moment ago?")
        objects = get_all_nested_objects(message)
        for object_id in missing:
            self.state.store_object(run_id, session, object_id, objects[object_id].deflate())
        return message.metadata.message_id

    def collect(self, message_ids: Iterable[str]) -> Mapping[str, RecordDict | WireError]:
        """Replies that are complete, by the id of their question; each is given out once and then deleted."""
        found: dict[str, RecordDict | WireError] = {}
        for question_id in message_ids:
            content = self.state.finished_reply(question_id)
            if content is not None:
                found[question_id] = _open(content)
                self.state.discard({question_id})
        return found

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Delete questions that nobody waits for any more."""
        self.state.discard(set(message_ids))


def _open(content: bytes) -> RecordDict | WireError:
    try:
        return RecordDict({RECORD: inflate_content(content)})
    except ValueError as error:
        return WireError(f"a reply cannot be read: {error}")


def _message(run_id: int, out: Outgoing) -> Message:
    # Flower's public constructor takes run and source from process-wide state; with several runs that would mix.
    metadata = Metadata(
        run_id=run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=out.node_id,
        reply_to_message_id="",
        group_id="",
        created_at=now().timestamp(),
        ttl=_TTL_S,
        message_type=out.message_type,
    )
    message = make_message(metadata, content=out.record)
    metadata.__dict__["_message_id"] = message.object_id
    return message
