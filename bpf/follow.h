/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Where the server's answers end. A connection moves only between two of them, and that cannot be told from the
 * socket: after "100 Continue", or where a server pauses, its queues are just as empty. So egress reads the head of each
 * answer as it leaves, and counts the bytes of its body; ingress counts the requests, and remembers which were HEAD.
 *
 * What cannot be followed pins the connection: it never moves. That is an answer whose end only its body tells (chunked,
 * or until the end of the connection), one whose head is not in one piece or longer than ANSWER_CAPACITY, a switch of
 * protocols, and anything that a server says without having been asked. Nothing is ever guessed.
 */
#pragma once

#include "figures.h"
#include "socket.h"
#include "swar.h"
#include "translate.h"

#define ANSWER_CAPACITY 4096 /* bytes of an answer's head; power of two */
#define ANSWER_WORDS	(ANSWER_CAPACITY / 8)
#define ANSWER_LINES	128
#define ANSWER_DIGITS	15 /* of a Content-Length, so that nothing overflows */
#define ANSWERS_AT_ONCE 4  /* in one packet, interim ones included */
#define HEADS		32 /* requests without an answer, at most */

struct answer { /* an answer's head, and what has been read of it */
	__u8 head[ANSWER_CAPACITY + 16];
	__u64 body; /* its Content-Length */
	__u32 at;
	__u32 length; /* bytes that there are */
	__u16 status;
	__u8 lengths; /* Content-Length lines */
	__u8 unclear; /* its end cannot be told */
	__u8 ended;   /* the empty line was found */
	__u8 reserved[3];
	__u32 zero; /* always 0, which the verifier does not know */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answers SEC(".maps");

static __always_inline struct answer *get_answer(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&answers, &zero);
}

static __always_inline __u64 answer_word(const struct answer *answer, __u32 at)
{
	return *(const __u64 *)(answer->head + (at & (ANSWER_CAPACITY - 1)));
}

static __always_inline __u8 answer_byte(const struct answer *answer, __u32 at)
{
	return answer->head[at & (ANSWER_CAPACITY - 1)];
}

/* Where the line's LF is, or ANSWER_CAPACITY. */
static __always_inline __u32 find_line_end(const struct answer *answer, __u32 at)
{
	for (__u32 i = 0; i < ANSWER_WORDS; i++) {
		__u64 stop = swar_equal(answer_word(answer, at), '\n');

		if (stop)
			return forget(answer, at + swar_index(stop));
		at = forget(answer, at + 8);
		if (at >= answer->length)
			break;
	}
	return ANSWER_CAPACITY;
}

/* A decimal number and nothing else, up to the CR at `end`. */
static __always_inline void read_answer_length(struct answer *answer, __u32 at, __u32 end)
{
	__u64 value = 0;
	__u32 digits = 0;

	while (digits < 8 && (answer_byte(answer, at) == ' ' || answer_byte(answer, at) == '\t')) {
		at = forget(answer, at + 1);
		digits++;
	}
	digits = 0;
	for (__u32 i = 0; i < ANSWER_DIGITS; i++) {
		__u8 digit = answer_byte(answer, at) - '0';

		if (digit > 9)
			break;
		value = forget(answer, value * 10 + digit);
		at = forget(answer, at + 1);
		digits++;
	}
	answer->lengths++;
	answer->body = value;
	if (!digits || at != end)
		answer->unclear = 1;
}

/* One line of the head; bpf_loop callback. Returns 1 at the empty line, and where it cannot be read. */
static long read_answer_line(__u32 index, void *context)
{
	struct answer *answer = get_answer();
	__u64 word, next;
	__u32 at, end;

	if (!answer)
		return 1;
	at = answer->at;
	end = find_line_end(answer, at);
	if (end >= answer->length || end == at || answer_byte(answer, end - 1) != '\r' ||
	    answer_byte(answer, at) == ' ' || answer_byte(answer, at) == '\t') {
		answer->unclear = 1;
		return 1;
	}
	answer->at = end + 1;
	if (end == at + 1) {
		answer->ended = 1;
		return 1;
	}
	word = swar_lower(answer_word(answer, at));
	next = swar_lower(answer_word(answer, at + 8));
	if (word == CHARS8('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    swar_first(next, 7) == CHARS8('l', 'e', 'n', 'g', 't', 'h', ':', 0))
		read_answer_length(answer, at + 15, end - 1);
	if (word == CHARS8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') && next == CHARS8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n'))
		answer->unclear = 1;
	return 0;
}

/* "HTTP/1.1 200 ": the status, or 0. Servers that answer 1.0 close, or say what they mean in ways of their own. */
static __always_inline __u16 read_status(const struct answer *answer)
{
	__u8 hundreds = answer_byte(answer, 9) - '0', tens = answer_byte(answer, 10) - '0',
	     ones = answer_byte(answer, 11) - '0';

	if (answer_word(answer, 0) != CHARS8('H', 'T', 'T', 'P', '/', '1', '.', '1') || answer_byte(answer, 8) != ' ' ||
	    (__u8)(hundreds - 1) > 8 || tens > 9 || ones > 9)
		return 0;
	return hundreds * 100 + tens * 10 + ones;
}

/* The first digit of the status, or 0. Of HTTP/1.0, too, of which nothing else is understood here. */
static __always_inline __u32 status_class(const struct answer *answer)
{
	__u32 digit = (__u8)(answer_byte(answer, 9) - '0');

	if (swar_first(answer_word(answer, 0), 7) != CHARS8('H', 'T', 'T', 'P', '/', '1', '.', 0) ||
	    answer_byte(answer, 8) != ' ' || digit >= STATUS_CLASSES)
		return 0;
	return digit;
}

/* For the figures: an answer begins. Whether it can be followed or not, its beginning is in the scratch map. */
static __always_inline void note_status(struct mapping *mapping)
{
	const struct answer *answer = get_answer();
	__u32 class;

	if (!answer)
		return;
	class = status_class(answer);
	note_answer(mapping, class, class == 1 && answer->status != 101);
}

/* Reads the head of `length` bytes at most at `offset` of the packet. Returns its length, or 0: it cannot be read.
 * Global: verified once. */
__noinline __u32 read_answer(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	struct answer *answer = get_answer();

	if (!answer || !length)
		return 0;
	length = bounded_length(length > ANSWER_CAPACITY ? ANSWER_CAPACITY : length, ANSWER_CAPACITY);
	if (bpf_skb_load_bytes(skb, offset, answer->head, length))
		return 0;
	*(__u64 *)(answer->head + length) = 0;
	answer->at = 0;
	answer->length = length;
	answer->body = 0;
	answer->lengths = answer->unclear = answer->ended = 0;
	answer->status = read_status(answer);
	if (!answer->status)
		return 0;
	bpf_loop(ANSWER_LINES, read_answer_line, NULL, 0);
	return answer->ended ? answer->at : 0;
}

/* The present answer has so many bytes of its body left. */
static __always_inline void leave_body(struct mapping *mapping, __u64 body)
{
	mapping->left = body;
	if (!body)
		mapping->answered++;
}

/* The head that was read is the answer to the oldest request without one. 0, or -1: its end cannot be told. */
static __always_inline int begin_answer(struct mapping *mapping)
{
	const struct answer *answer = get_answer();
	__u32 status;

	if (!answer)
		return -1;
	status = answer->status;
	if (status == 101)
		return -1;
	if (status < 200)
		return 0;
	if (mapping->heads >> (mapping->answered & (HEADS - 1)) & 1 || status == 204 || status == 304) {
		leave_body(mapping, 0);
		return 0;
	}
	if (answer->unclear || answer->lengths != 1)
		return -1;
	leave_body(mapping, answer->body);
	return 0;
}

/* New bytes of the server, at `offset` of the packet. 0, or -1: they cannot be followed. */
static __always_inline int follow_bytes(struct __sk_buff *skb, struct mapping *mapping, __u32 offset, __u32 length)
{
	for (__u32 i = 0; i <= ANSWERS_AT_ONCE; i++) {
		__u32 head;

		if (mapping->left) {
			__u32 taken = mapping->left < length ? mapping->left : length;

			leave_body(mapping, mapping->left - taken);
			offset += taken;
			length -= taken;
		}
		if (!length)
			return 0;
		if (mapping->asked == mapping->answered)
			return -1;
		head = read_answer(skb, offset, length);
		note_status(mapping);
		if (!head || head > length || begin_answer(mapping))
			return -1;
		offset += head;
		length -= head;
	}
	return -1;
}

/* A segment of the connection's own socket, whose payload is at `offset` of the packet. */
static __noinline int follow_answer(struct __sk_buff *skb, struct mapping *mapping, __u32 seq, __u32 offset)
{
	__u32 length = skb->len - offset, behind = mapping->sent - seq;

	if (mapping->pinned || skb->len <= offset)
		return 0;
	if (behind >= length && behind <= 0x7fffffff)
		return 0; /* all of it sent before */
	if (behind >= length || follow_bytes(skb, mapping, offset + behind, length - behind))
		mapping->pinned = 1;
	mapping->sent = seq + length;
	return 0;
}

/*
 * A request starts in this segment, says the router. Whether all before it has been received is what the socket says:
 * otherwise it has overtaken something, another request perhaps, and comes again. 0, or -1: it is to be dropped.
 * Where answers are not followed any more, nothing depends on it, and nothing counts as unanswered; only the figures have
 * it.
 */
static __always_inline int count_request(struct mapping *mapping, __u32 seq, __u32 expected, int is_head,
					 __u64 route)
{
	__u32 bit = 1U << (mapping->asked & (HEADS - 1));

	if ((__s32)(seq - expected) > 0)
		return mapping->pinned ? 0 : -1;
	if (seq != expected || mapping->request == seq)
		return 0;
	if (!mapping->pinned && (__u8)(mapping->asked - mapping->answered) >= HEADS)
		return -1;
	mapping->request = seq;
	mapping->route = route;
	note_asked(mapping);
	if (mapping->pinned)
		return 0;
	mapping->heads = is_head ? mapping->heads | bit : mapping->heads & ~bit;
	barrier();
	mapping->asked++;
	return 0;
}
