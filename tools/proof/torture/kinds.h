/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lives that a client can have. Keepers start many of the first three, and expect nothing; they last until somebody
 * ends them.
 */
#ifndef KINDS_H
#define KINDS_H

void live_in_shared_memory(void);
void live_on_socket(void);
void live_on_table(void);

/* As long as somebody is attached to the legacy table it is not made anew. */
void stay_attached(void);

/* When nobody else is there: says which lcores it can have, keeps them until its input ends, and has whatever else
 * there is. */
void have_everything(void);

/* Likewise: says which lcores of the legacy table it can have. */
void drain_table(void);

#endif
