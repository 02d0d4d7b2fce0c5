/* SPDX-License-Identifier: BSD-3-Clause
 *
 * While the victim lives: what each process was told must agree with what the table says, and no two may think they own
 * the same.
 */
#ifndef JUDGEMENT_H
#define JUDGEMENT_H

#include "mtlshm.h"

/* After each change that the victim made since `start`: no instruction of its own may harm anybody else, nor leave it
 * looking dead. */
void look_at_table(const struct mtlshm_segment *start);

/* After it was stopped, a rival did what it liked, and the victim went on to the end of the call. */
void judge(void);

/* The same, where one opened the segment or both did; where one removed it and the other registered. */
void judge_opened(void);
void judge_removed(void);

#endif
