# SPDX-License-Identifier: BSD-3-Clause
"""The ledger: the owners of queues, flow rules and ports, and the interfaces in use.

WHY IT IS NOT IN THE SEGMENT. What is written here decides what a privileged daemon deletes from a NIC. The segment can
be written by its whole group; here only the daemon's user writes. So the ledger is a file of its own, in the daemon's
state directory.

THE INTENT COMES FIRST. A flow rule is entered before it is inserted, marked as incomplete, and removed from the ledger
after it is gone from the NIC. So the ledger has every rule of ours at any moment. Entries in BPF maps, for queues and
ports, are set after they are in the ledger, and cleared before they leave it. A daemon that starts writes them anew.

OWNERS are registrations: a process that registers twice is two owners. Owners are numbered here, and no number is used
again. An owner that is leaving gets nothing more, and keeps what could not be taken away yet.

store.py is about the file: who may write it, who waits for whom, and the errors.
"""

from __future__ import annotations

import errno
from typing import Any

from mtlshm.kinds import TableOwner
from mtlshm.net.flow import FlowSpec
from mtlshm.net.ledger.rows import Flow, LedgerOwner, Owner, PortReference, Queue, QueueNumber, State, Use, flow_of_row
from mtlshm.net.ledger.store import Store
from mtlshm.snapshot import Process, printable


class Ledger(Store):
    """The ledger in the state directory `directory`; see store.py for the arguments."""

    # -- reading

    def state(self) -> State:
        """All of it."""
        with self._told(), self._still():
            return State(self.owners(), self.uses(), self.queues(), self.flows(), self._ports())

    def owners(self) -> tuple[Owner, ...]:
        """All owners, in the order in which they came, those that are leaving included."""
        fields = "id, token, leaving, pid, pid_namespace, start_ticks, pidfd_inode, uid, comm, hostname, label"
        with self._told():
            rows = self._db.execute(f"SELECT {fields} FROM owners ORDER BY id").fetchall()
        return tuple(
            Owner(id, TableOwner(int(token, 16)), Process(*who[:5], *map(printable, who[5:])), bool(leaving))
            for id, token, leaving, *who in rows
        )

    def uses(self) -> tuple[Use, ...]:
        """The interfaces in use."""
        with self._told():
            rows = self._db.execute(
                "SELECT ifindex, owner, 0 FROM uses UNION ALL SELECT ifindex, NULL, 1 FROM kept ORDER BY 1, 2"
            ).fetchall()
        return tuple(
            Use(
                ifindex,
                any(kept for index, _, kept in rows if index == ifindex),
                tuple(owner for index, owner, _ in rows if index == ifindex and owner is not None),
            )
            for ifindex in dict.fromkeys(row[0] for row in rows)
        )

    def queues(self, ifindex: int | None = None, owner: LedgerOwner | None = None) -> tuple[Queue, ...]:
        """The queues that are owned: all, or those of an interface, an owner, or both."""
        return tuple(Queue(*row) for row in self._select("ifindex, queue, owner", "queues", ifindex, owner))

    def flows(self, ifindex: int | None = None, owner: LedgerOwner | None = None) -> tuple[Flow, ...]:
        """The flow rules, incomplete ones included: all, or those of an interface, an owner, or both."""
        fields = "ifindex, location, queue, owner, complete, type, source, destination, source_port, destination_port"
        return tuple(flow_of_row(*row) for row in self._select(fields, "flows", ifindex, owner))

    def ports(self, ifindex: int) -> frozenset[int]:
        """The ports that anyone has a reference to."""
        return frozenset(row[0] for row in self._select("port, owner", "ports", ifindex, None))

    def _ports(self) -> tuple[PortReference, ...]:
        return tuple(PortReference(*row) for row in self._select("ifindex, port, owner, count", "ports", None, None))

    def _select(self, fields: str, table: str, ifindex: int | None, owner: LedgerOwner | None) -> list[tuple[Any, ...]]:
        wanted = {"ifindex": ifindex, "owner": owner}
        where = [f"{name} = {value:d}" for name, value in wanted.items() if value is not None]
        with self._told():
            query = f"SELECT {fields} FROM {table} WHERE {' AND '.join(where) or 'TRUE'} ORDER BY 1, 2"
            return self._db.execute(query).fetchall()

    # -- owners

    def enter(self, token: TableOwner, process: Process) -> LedgerOwner:
        """The number of an owner; if it is known already, the one it has."""
        text = f"{token:x}"
        who = (process.pid, process.pid_namespace, process.start_ticks, process.pidfd_inode)
        with self._change() as db:
            known = db.execute(
                "SELECT id FROM owners WHERE NOT leaving AND token = ? AND pid = ? AND pid_namespace = ?"
                " AND start_ticks = ? AND pidfd_inode = ?",
                (text, *who),
            ).fetchone()
            if known:
                return LedgerOwner(known[0])
            display = (process.uid, process.comm, process.hostname, process.label)
            cursor = db.execute(
                "INSERT INTO owners (token, pid, pid_namespace, start_ticks, pidfd_inode, uid, comm, hostname, label)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (text, *who, *display),
            )
            assert cursor.lastrowid is not None
            return LedgerOwner(cursor.lastrowid)

    def leave(self, owner: LedgerOwner) -> None:
        """It has ended, and gets nothing more."""
        with self._change() as db:
            db.execute("UPDATE owners SET leaving = 1 WHERE id = ?", (owner,))
            db.execute("DELETE FROM uses WHERE owner = ?", (owner,))

    def last_references(self, owner: LedgerOwner) -> dict[int, tuple[int, ...]]:
        """By interface, the ports that nobody but this owner has a reference to."""
        found: dict[int, list[int]] = {}
        with self._told():
            for ifindex, port in self._db.execute(
                "SELECT ifindex, port FROM ports AS ours WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM ports"
                " WHERE ifindex = ours.ifindex AND port = ours.port AND owner <> ours.owner) ORDER BY ifindex, port",
                (owner,),
            ):
                found.setdefault(ifindex, []).append(port)
        return {ifindex: tuple(ports) for ifindex, ports in found.items()}

    def settle(self, owner: LedgerOwner) -> bool:
        """Cross out what an owner that is leaving had, but for its flow rules and the queues they lead to. True if
        nothing is left, and so the owner is crossed out too."""
        with self._change() as db:
            db.execute("DELETE FROM ports WHERE owner = ?", (owner,))
            db.execute(
                "DELETE FROM queues WHERE owner = ? AND NOT EXISTS (SELECT 1 FROM flows"
                " WHERE flows.ifindex = queues.ifindex AND flows.queue = queues.queue)",
                (owner,),
            )
            if db.execute("SELECT 1 FROM flows WHERE owner = ?", (owner,)).fetchone():
                return False
            db.execute("DELETE FROM owners WHERE id = ? AND leaving", (owner,))
            return True

    # -- interfaces

    def use(self, owner: LedgerOwner, ifindex: int) -> bool:
        """An owner wants the interface served. True if it is the first who does."""
        with self._change() as db:
            self._check_owner(owner)
            first = not self._in_use(ifindex)
            db.execute("INSERT OR IGNORE INTO uses VALUES (?, ?)", (ifindex, owner))
            return first

    def keep(self, ifindex: int) -> bool:
        """Serve the interface whoever wants it. True if nobody did."""
        with self._change() as db:
            first = not self._in_use(ifindex)
            db.execute("INSERT OR IGNORE INTO kept VALUES (?)", (ifindex,))
            return first

    def unkeep(self, ifindex: int) -> bool:
        """Serve it for those only who want it. True if nobody does."""
        with self._change() as db:
            db.execute("DELETE FROM kept WHERE ifindex = ?", (ifindex,))
            return not self._in_use(ifindex)

    def in_use(self, ifindex: int) -> bool:
        """Whether an owner uses the interface, or an administrator keeps it."""
        with self._told():
            return self._in_use(ifindex)

    def forget_interface(self, ifindex: int) -> None:
        """It is gone, and so is all that anyone had of it."""
        with self._change() as db:
            for table in ("flows", "queues", "ports", "uses", "kept"):
                db.execute(f"DELETE FROM {table} WHERE ifindex = ?", (ifindex,))

    def _in_use(self, ifindex: int) -> bool:
        query = "SELECT 1 FROM uses WHERE ifindex = ?1 UNION ALL SELECT 1 FROM kept WHERE ifindex = ?1 LIMIT 1"
        return self._db.execute(query, (ifindex,)).fetchone() is not None

    # -- queues

    def claim_queue(self, owner: LedgerOwner, ifindex: int, number: int) -> QueueNumber:
        """The lowest free queue of an interface that has `number`, which is the owner's from now on. 0 is nobody's."""
        with self._change() as db:
            self._check_owner(owner)
            taken = {queue.queue for queue in self.queues(ifindex)}
            queue = next((QueueNumber(queue) for queue in range(1, number) if queue not in taken), None)
            if queue is None:
                text = f"interface {ifindex}: all of its {number} queues are in use"
                raise OSError(errno.ENOSPC, f"{text}; more of them, if it can: ethtool -L … combined N")
            db.execute("INSERT INTO queues VALUES (?, ?, ?)", (ifindex, queue, owner))
            return queue

    def check_queue(self, owner: LedgerOwner, ifindex: int, queue: QueueNumber) -> None:
        """OSError if the owner cannot give it back: EINVAL if it is not its own, EBUSY if flow rules lead to it."""
        with self._told():
            if self._holder(ifindex, queue) != owner:
                raise OSError(errno.EINVAL, f"interface {ifindex}: queue {queue} is not yours")
            if rules := [flow.location for flow in self.flows(ifindex) if flow.queue == queue]:
                raise OSError(
                    errno.EBUSY, f"interface {ifindex}: rules {rules} lead to queue {queue}: delete them first"
                )

    def put_queue(self, owner: LedgerOwner, ifindex: int, queue: QueueNumber) -> None:
        """It is free again. OSError as check_queue()."""
        with self._change() as db:
            self.check_queue(owner, ifindex, queue)
            db.execute("DELETE FROM queues WHERE ifindex = ? AND queue = ?", (ifindex, queue))

    def _holder(self, ifindex: int, queue: QueueNumber) -> LedgerOwner | None:
        query = "SELECT owner FROM queues WHERE ifindex = ? AND queue = ?"
        row = self._db.execute(query, (ifindex, queue)).fetchone()
        return row and LedgerOwner(row[0])

    # -- flow rules

    def intend_flow(self, owner: LedgerOwner, ifindex: int, queue: QueueNumber, location: int, spec: FlowSpec) -> None:
        """A rule is about to be inserted. A queue that is nobody's becomes the owner's; EBUSY if somebody else's."""
        with self._change() as db:
            self._check_owner(owner)
            holder = self._holder(ifindex, queue)
            if holder is None:
                db.execute("INSERT INTO queues VALUES (?, ?, ?)", (ifindex, queue, owner))
            elif holder != owner:
                raise OSError(errno.EBUSY, f"interface {ifindex}: queue {queue} is somebody else's")
            addresses = (address and str(address) for address in (spec.source, spec.destination))
            ports = (spec.source_port, spec.destination_port)
            db.execute(
                "INSERT INTO flows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
                (ifindex, location, queue, owner, spec.type, *addresses, *ports, holder is None),
            )

    def complete_flow(self, ifindex: int, location: int, number: int | None = None) -> None:
        """It is in the NIC, and has another number now if the driver chose the place. Who had that has lost it there:
        somebody deleted his rule."""
        with self._change() as db:
            db.execute(
                "UPDATE OR REPLACE flows SET complete = 1, location = ? WHERE ifindex = ? AND location = ?",
                (location if number is None else number, ifindex, location),
            )

    def forget_flow(self, ifindex: int, location: int) -> None:
        """It is not in the NIC. If it was never complete, nor does the owner get the queue that came with it."""
        with self._change() as db:
            row = db.execute(
                "DELETE FROM flows WHERE ifindex = ? AND location = ? RETURNING queue, with_queue AND NOT complete",
                (ifindex, location),
            ).fetchone()
            if row and row[1]:
                db.execute(
                    "DELETE FROM queues WHERE ifindex = ?1 AND queue = ?2 AND NOT EXISTS"
                    " (SELECT 1 FROM flows WHERE ifindex = ?1 AND queue = ?2)",
                    (ifindex, row[0]),
                )

    # -- ports

    def add_port(self, owner: LedgerOwner, ifindex: int, port: int) -> bool:
        """One more reference. True if it is anyone's first: let the port's packets through."""
        with self._change() as db:
            self._check_owner(owner)
            first = not self._referenced(ifindex, port)
            db.execute(
                "INSERT INTO ports VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                (ifindex, port, owner),
            )
            return first

    def drop_port(self, owner: LedgerOwner, ifindex: int, port: int) -> bool:
        """One reference fewer; EINVAL if the owner has none. True if it was anyone's last."""
        which = (ifindex, port, owner)
        with self._change() as db:
            row = db.execute("SELECT count FROM ports WHERE ifindex = ? AND port = ? AND owner = ?", which).fetchone()
            if row is None:
                raise OSError(errno.EINVAL, f"interface {ifindex}: you have no reference to port {port}")
            if row[0] > 1:
                db.execute("UPDATE ports SET count = count - 1 WHERE ifindex = ? AND port = ? AND owner = ?", which)
                return False
            db.execute("DELETE FROM ports WHERE ifindex = ? AND port = ? AND owner = ?", which)
            return not self._referenced(ifindex, port)

    def _referenced(self, ifindex: int, port: int) -> bool:
        query = "SELECT 1 FROM ports WHERE ifindex = ? AND port = ? LIMIT 1"
        return self._db.execute(query, (ifindex, port)).fetchone() is not None

    def _check_owner(self, owner: LedgerOwner) -> None:
        if not self._db.execute("SELECT 1 FROM owners WHERE id = ? AND NOT leaving", (owner,)).fetchone():
            raise OSError(errno.ESRCH, f"owner {owner} has left")
