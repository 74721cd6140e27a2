/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The header lines of a request, read from the scratch copy: Host says which routes count, Content-Length
 * where the next request starts. What is refused, and why, stands in http.h.
 */
#pragma once

#include "hash.h"
#include "scratch.h"
#include "verdict.h"

#define CRLF	    0x0a0d /* as a little-endian pair */
#define MAX_LINES   128	   /* header lines */
#define MAX_WORDS   (HEAD_CAPACITY / 8)
#define MAX_PADDING 16 /* white space around a value */
#define MAX_DIGITS  64 /* of a Content-Length; what is too large is so long before */
#define MAX_BODY    (0x7fffffffULL - HEAD_CAPACITY)

/* Why reading stopped at `at`: the packet ended there, or the text is wrong. */
static __always_inline enum verdict broken(__u32 at, __u32 length)
{
	return at + 2 > length ? TX_HEAD_TOO_LARGE : TX_BAD_REQUEST;
}

static __always_inline __u32 skip_padding(const struct scratch *scratch, __u32 at)
{
	for (__u32 i = 0; i < MAX_PADDING; i++) {
		__u8 byte = byte_at(scratch, at);

		if (byte != ' ' && byte != '\t')
			break;
		at = forget(scratch, at + 1);
	}
	return at;
}

/* To the first byte that is not part of a field name: a colon, if the line is well-formed. */
static __always_inline __u32 skip_name(const struct scratch *scratch, __u32 at)
{
	for (__u32 i = 0; i < MAX_PATH / 8; i++) {
		__u64 word = word_at(scratch, at);
		__u64 stop = swar_below(word, 0x21) | swar_equal(word, ':') | swar_equal(word, 0x7f) |
			     (word & SWAR_HIGH);

		if (stop)
			return forget(scratch, at + swar_index(stop));
		at += 8;
	}
	return at;
}

/* To the first control character but tab: a CR, if the line is well-formed. */
static __always_inline __u32 skip_value(const struct scratch *scratch, __u32 at)
{
	for (__u32 i = 0; i < MAX_WORDS; i++) {
		__u64 word = word_at(scratch, at = forget(scratch, at));
		__u64 stop = swar_below(word, 0x20) | swar_equal(word, 0x7f);

		if (!stop) {
			at += 8;
			continue;
		}
		at = forget(scratch, at + swar_index(stop));
		if (byte_at(scratch, at) != '\t')
			return at;
		at++;
	}
	return at;
}

/* The name's last word without a final dot, which only says that the name is complete. What is then empty
 * or ends in one more dot is no name: `hosts` becomes 2. */
static __always_inline __u64 drop_final_dot(struct scratch *scratch, __u64 last, __u32 end)
{
	struct request *request = &scratch->request;

	if (!request->host_length || byte_at(scratch, end - 1) != '.')
		return last;
	request->host_length--;
	if (!request->host_length || byte_at(scratch, end - 2) == '.')
		request->hosts = 2;
	return swar_first(last, request->host_length & 7);
}

/* ":80", if there is a name in front of it. Returns where it ends; what is wrong ends elsewhere than at
 * CRLF. */
static __always_inline __u32 skip_port(const struct scratch *scratch, __u32 at)
{
	if (!scratch->request.host_length || byte_at(scratch, at) != ':')
		return at;
	at++;
	for (__u32 i = 0; i < 5 && byte_at(scratch, at) >= '0' && byte_at(scratch, at) <= '9'; i++)
		at = forget(scratch, at + 1);
	return at;
}

/* "name:port" or "name". Returns where the value ends; what is wrong ends elsewhere than at the CRLF, or
 * sets `hosts` to 2. */
static __always_inline __u32 read_host(struct scratch *scratch, __u32 at)
{
	struct request *request = &scratch->request;
	__u64 hash = route_key, last = 0;

	request->hosts = request->hosts ? 2 : 1;
	request->host = at;
	for (__u32 i = 0; i < MAX_HOST / 8; i++) {
		__u64 word = word_at(scratch, at), stop = swar_not_host(word);
		__u64 text = stop ? word & swar_before(stop) : word;

		if (last && text)
			hash = hash_mix(hash, last);
		if (text)
			last = swar_lower(text);
		if (!stop) {
			at = forget(scratch, at + 8);
			continue;
		}
		at = forget(scratch, at + swar_index(stop));
		break;
	}
	request->host_length = at - request->host;
	last = drop_final_dot(scratch, last, at);
	request->host_hash = last ? hash_mix(hash, last) : hash;
	at = skip_port(scratch, at);
	request->host_text = at - request->host;
	return skip_padding(scratch, at);
}

/* Decimal digits only. Returns where the value ends; what is no number ends elsewhere than at the CRLF, or
 * sets `lengths` to 2. */
static __always_inline __u32 read_content_length(struct scratch *scratch, __u32 at)
{
	struct request *request = &scratch->request;
	__u32 start = at;
	__u64 value = 0;

	for (__u32 i = 0; i < MAX_DIGITS; i++) {
		__u8 digit = byte_at(scratch, at) - '0';

		if (digit > 9)
			break;
		if (value <= MAX_BODY)
			value = forget(scratch, value * 10 + digit);
		at = forget(scratch, at + 1);
	}
	request->lengths = request->lengths || at == start ? 2 : 1;
	request->content_length = value;
	request->oversized = value > MAX_BODY;
	return skip_padding(scratch, at);
}

static __always_inline int is_host(const struct scratch *scratch, __u32 name)
{
	__u64 word = swar_lower(word_at(scratch, name));

	return swar_first(word, 5) == CHARS8('h', 'o', 's', 't', ':', 0, 0, 0);
}

/* The field name in lower case is one of three more that routing needs to know; everything else is skipped.
 */
static __always_inline __u32 read_field(struct scratch *scratch, __u32 name, __u32 colon)
{
	__u64 word = swar_lower(word_at(scratch, name)), next = swar_lower(word_at(scratch, name + 8));
	__u32 value = skip_padding(scratch, colon + 1), size = colon - name;

	if (size == 14 && word == CHARS8('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    swar_first(next, 6) == CHARS8('l', 'e', 'n', 'g', 't', 'h', 0, 0))
		return read_content_length(scratch, value);
	if (size == 17 && word == CHARS8('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
	    next == CHARS8('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') &&
	    (byte_at(scratch, name + 16) | 0x20) == 'g')
		scratch->request.encoded = 1;
	if (size == 7 && swar_first(word, 7) == CHARS8('u', 'p', 'g', 'r', 'a', 'd', 'e', 0))
		scratch->request.upgrade = 1;
	return skip_value(scratch, value);
}

/* One header line; bpf_loop callback. Returns 1 at the empty line, and when the request is refused. */
static long read_line(__u32 index, void *context)
{
	struct scratch *scratch = get_scratch();
	struct line_reader *lines;
	__u32 name, colon, end;

	if (!scratch)
		return 1;
	lines = &scratch->lines;
	name = lines->at;
	if (pair_at(scratch, name) == CRLF) {
		lines->at = name + 2;
		lines->verdict = 0;
		return 1;
	}
	if (is_host(scratch, name)) { /* every request has one: found without looking for its end */
		end = read_host(scratch, skip_padding(scratch, name + 5));
	} else {
		colon = skip_name(scratch, name);
		if (colon == name || byte_at(scratch, colon) != ':') {
			lines->verdict = broken(colon, lines->length);
			return 1;
		}
		end = read_field(scratch, name, colon);
	}
	if (pair_at(scratch, end) != CRLF) {
		lines->verdict = broken(end, lines->length);
		return 1;
	}
	lines->at = end + 2;
	return 0;
}

/* A target in absolute form names the host a second time: what differs in more than case is not guessed at.
 * Global: verified once. */
__noinline int authority_is_host(void)
{
	const struct scratch *scratch = get_scratch();
	const struct request *request;

	if (!scratch)
		return 0;
	request = &scratch->request;
	if (request->authority_length != request->host_text)
		return 0;
	for (__u32 i = 0; i < MAX_HOST / 8 + 2 && 8 * i < request->host_text; i++) {
		__u64 theirs = swar_lower(word_at(scratch, request->authority + 8 * i));
		__u64 ours = swar_lower(word_at(scratch, request->host + 8 * i));

		if (swar_first(theirs ^ ours, request->host_text - 8 * i))
			return 0;
	}
	return 1;
}

static __always_inline __u32 check_fields(const struct request *request)
{
	if (request->hosts > 1 || (!request->hosts && !request->version_1_0))
		return TX_BAD_REQUEST;
	if (request->lengths > 1 || (request->lengths && request->encoded))
		return TX_BAD_REQUEST;
	if (request->authority_length && !authority_is_host())
		return TX_BAD_REQUEST;
	if (request->encoded)
		return TX_LENGTH_REQUIRED;
	if (request->upgrade)
		return TX_NOT_IMPLEMENTED;
	return request->oversized ? TX_BODY_TOO_LARGE : 0;
}
