/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of the requests that are answered here, and of their replies; mtlshm/wire.py has all of them.
 */
#ifndef SELECTOR_RECORD_H
#define SELECTOR_RECORD_H

#include <stdint.h>
#include <string.h>

enum {
	RECORD_MAGIC = 0x494d544c, /* "IMTL" */
	RECORD_HEADER = 12,        /* magic, type, body length; each of 4 bytes, big-endian as all that follows */

	RECORD_REGISTER = 101,
	RECORD_HEARTBEAT = 102,
	RECORD_GET_LCORE = 103,
	RECORD_PUT_LCORE = 104,
	RECORD_RESPONSE = 201,
	RECORD_HEARTBEAT_ACK = 204,

	/* REGISTER. Its length in big-endian tells dialect B; in dialect A that is in host byte order. */
	REGISTER_LENGTH = 106,
	REGISTER_HOSTNAME = RECORD_HEADER + 8,
	REGISTER_HOSTNAME_SIZE = 64,
	REGISTER_INTERFACES = REGISTER_HOSTNAME + REGISTER_HOSTNAME_SIZE, /* how many */
};

static inline uint32_t record_u16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t record_u32(const uint8_t *at)
{
	return record_u16(at) << 16 | record_u16(at + 2);
}

static inline void record_put_u32(uint8_t *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* A reply whose body is one number; what is not used is zero. */
static inline void record_reply(uint8_t *record, size_t size, uint32_t type, uint32_t value)
{
	memset(record, 0, size);
	record_put_u32(record, RECORD_MAGIC);
	record_put_u32(record + 4, type);
	record_put_u32(record + 8, sizeof(value));
	record_put_u32(record + RECORD_HEADER, value);
}

#endif
