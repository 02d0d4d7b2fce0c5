/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What somebody else does while the victim is stopped; once for each victim. What comes of it is judged afterwards
 * (judgement.h).
 */
#ifndef RIVAL_H
#define RIVAL_H

/* Comes, and bit by bit of the variant: sweeps (before, so that it gets a dead one's record, or after); claims all
 * there is, or a few, or none; gives half of it back; keeps the semaphore; in a family, is a tenant of
 * the bystander. */
void meddle(unsigned int variant);

/* It makes the segment: both shall have the same. */
void open_as_well(unsigned int variant);

/* It retired the segment and thinks better of it: then it stays. */
void spare_meanwhile(unsigned int variant);

/* It registers, or removes the segment, while the victim does the other: one of them only may have been able to. */
void register_meanwhile(unsigned int variant);
void remove_meanwhile(unsigned int variant);

/* It leaves. */
void dismiss_rival(void);

#endif
