/* Frames: u32 length, then bytes; every number is little-endian. */
#include "cc.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void put_bytes(struct buffer *to, const void *bytes, size_t length)
{
	if (to->failed)
		return;
	if (length > to->room - to->length) {
		size_t room = to->room ? to->room : 16384;
		while (room - to->length < length)
			room *= 2;
		unsigned char *grown = realloc(to->bytes, room);
		if (!grown) {
			to->failed = true;
			return;
		}
		to->bytes = grown;
		to->room = room;
	}
	if (length)
		memcpy(to->bytes + to->length, bytes, length);
	to->length += length;
}

void put_u32(struct buffer *to, uint32_t value)
{
	unsigned char bytes[4] = {value, value >> 8, value >> 16, value >> 24};
	put_bytes(to, bytes, sizeof bytes);
}

void put_u64(struct buffer *to, uint64_t value)
{
	put_u32(to, (uint32_t)value);
	put_u32(to, (uint32_t)(value >> 32));
}

void put_block(struct buffer *to, const void *bytes, size_t length)
{
	if (length > REPLY_BYTES_MAX)
		to->failed = true;
	put_u32(to, (uint32_t)length);
	put_bytes(to, bytes, length);
}

uint32_t take_u32(struct reader *from)
{
	if (from->end - from->at < 4) {
		from->failed = true;
		return 0;
	}
	const unsigned char *at = from->at;
	from->at += 4;
	return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

uint64_t take_u64(struct reader *from)
{
	uint64_t low = take_u32(from);
	return low | (uint64_t)take_u32(from) << 32;
}

const unsigned char *take_block(struct reader *from, uint32_t *length)
{
	*length = take_u32(from);
	if (from->failed || (size_t)(from->end - from->at) < *length) {
		from->failed = true;
		*length = 0;
		return NULL;
	}
	const unsigned char *at = from->at;
	from->at += *length;
	return at;
}

bool write_all(int descriptor, const void *bytes, size_t length)
{
	const char *at = bytes;
	while (length) {
		ssize_t wrote = write(descriptor, at, length);
		if (wrote < 0 && errno == EAGAIN) { /* somebody made the terminal or the pipe non-blocking */
			struct pollfd writable = {.fd = descriptor, .events = POLLOUT};
			poll(&writable, 1, -1);
			continue;
		}
		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return false;
		at += wrote;
		length -= (size_t)wrote;
	}
	return true;
}

static bool send_all(int daemon, const void *bytes, size_t length)
{
	const char *at = bytes;
	while (length) {
		ssize_t sent = send(daemon, at, length, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && errno == EAGAIN) {
			struct pollfd writable = {.fd = daemon, .events = POLLOUT};
			if (poll(&writable, 1, SILENCE_MS) == 0)
				return false;
			continue;
		}
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		at += sent;
		length -= (size_t)sent;
	}
	return true;
}

bool send_frame(int daemon, const struct buffer *frame)
{
	/* The first four bytes were left for the length: one send, one wake-up. */
	if (frame->failed || frame->length < 4)
		return false;
	size_t length = frame->length - 4;
	for (int i = 0; i < 4; i++)
		frame->bytes[i] = (unsigned char)(length >> (8 * i));
	return send_all(daemon, frame->bytes, frame->length);
}

static bool receive_all(int daemon, unsigned char *to, size_t length)
{
	while (length) {
		struct pollfd readable = {.fd = daemon, .events = POLLIN};
		int ready = poll(&readable, 1, SILENCE_MS);
		if (ready < 0 && errno == EINTR)
			continue;
		if (ready == 0)
			errno = ETIMEDOUT;
		if (ready <= 0)
			return false;
		ssize_t got = recv(daemon, to, length, MSG_DONTWAIT);
		if (got < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (got == 0)
			errno = ECONNRESET;
		if (got <= 0)
			return false;
		to += got;
		length -= (size_t)got;
	}
	return true;
}

unsigned char *receive_frame(int daemon, size_t *length)
{
	for (;;) {
		unsigned char header[4];
		if (!receive_all(daemon, header, sizeof header))
			return NULL;
		*length = header[0] | (size_t)header[1] << 8 | (size_t)header[2] << 16 | (size_t)header[3] << 24;
		if (*length < 1 || *length > REPLY_BYTES_MAX) {
			errno = EBADMSG;
			return NULL;
		}
		unsigned char *bytes = malloc(*length);
		if (!bytes)
			return NULL;
		if (!receive_all(daemon, bytes, *length)) {
			free(bytes);
			return NULL;
		}
		if (bytes[0] == ANSWER_NOTE)
			write_all(2, bytes + 1, *length - 1);
		else if (bytes[0] != ANSWER_WAIT)
			return bytes;
		free(bytes);
	}
}
