/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lives that a client can have. Keepers start many of most, and expect nothing; they last until somebody ends them.
 */
#ifndef KINDS_H
#define KINDS_H

/* shared_memory.c, socket.c, legacy.c */
void live_in_shared_memory(void);
void live_on_socket(void);
void live_on_table(void);

/* family.c */
void live_in_tree(void);
void live_as_guest(void);

/* reservations.c */
void live_as_steward(void);

/* siege.c */
void live_as_regular(void);
void live_greedily(void);

/* Says by which leases regulars come; as long as it lives they must be given what is held for them. */
void hold(void);

/* When only the holder is left: is everything home? Then nothing is reserved any more. */
void audit(void);

/* As long as somebody is attached to the legacy table it is not made anew. */
void stay_attached(void);

/* When nobody else is there: says which lcores it can have, keeps them until its input ends, and has whatever else
 * there is. */
void have_everything(void);

/* Likewise: says which lcores of the legacy table it can have. */
void drain_table(void);

#endif
