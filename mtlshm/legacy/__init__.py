# SPDX-License-Identifier: BSD-3-Clause
"""libmtl's legacy table: the System V segment and its lock file, by which MTL processes share lcores with no manager.

Only this package knows their layout and their rules, which are those of every libmtl out there:

  An entry is ACTIVE or not, and an active one names its owner by host name, user and PID, the latter as the owner
  sees itself. Whoever holds the file lock may write any entry. A process that wants an lcore takes the first that is
  not active; before it looks at an active one, it clears it if host name and user are its own and kill(pid, 0) fails.

  Who attaches when nobody else is attached zeroes the table; who detaches last removes it. So the table lasts exactly
  as long as somebody stays attached.

entry.py knows the bytes of an entry, lock.py the lock file, table.py the segment, attached.py who is attached and
therefore lives; lending.py moves lcores between that table and ours.
"""

from mtlshm.errors import MtlshmError


class LegacyError(MtlshmError):
    """The legacy table cannot be used; the text says why and what to do."""
