/* SPDX-License-Identifier: BSD-3-Clause
 *
 * After a death: whoever comes first, and by whatever he does, finds all in order. Nothing is lost, left, owned twice
 * or unusable.
 */
#ifndef RECOVERY_H
#define RECOVERY_H

/* Do everything that anybody may do then, beginning with what the variation says, and look at what remains. */
void recover(unsigned int variation);

/* One of those things. */
void try_sweep(void);

#endif
