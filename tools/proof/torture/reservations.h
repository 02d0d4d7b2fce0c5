/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reservations under a few keys, which stewards make and end, and guests draw from. The last one is for regulars alone, and
 * nobody ends it before all is over.
 */
#ifndef RESERVATIONS_H
#define RESERVATIONS_H

#include <stdbool.h>

#include "mtlshm.h"

enum { RESERVATIONS = 4, LASTING = RESERVATIONS - 1 };

/* Any but the last. False: it is not there now. */
bool find_reservation(struct mtlshm_reserved *found);

/* Make the one that lasts; what it has goes to *made. */
void reserve_lasting(struct mtlshm_reserved *made);

/* When all others are gone: is each that is there whole, and home? End them all. */
void end_all_reservations(void);

#endif
