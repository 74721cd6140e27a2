/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The head of an HTTP/1 request (RFC 9112), read from the scratch copy.
 *
 * What could be read differently by the server behind us is not guessed at but refused. 400 for: a line
 * that does not end in CRLF, control characters, obsolete line folding, white space before a colon, a
 * target that is neither an absolute path, nor "http://" with the very Host and an absolute path, nor the
 * '*' of OPTIONS, another version than 1.0 and 1.1, no Host (1.1) or two, a Host that is not letters,
 * digits, '-', '.' and '_' with or without a port, two Content-Lengths or one that is not a number,
 * Content-Length with Transfer-Encoding, and in paths: an empty, "." or ".." segment, a raw '#', '\' or
 * byte outside 0x21..0x7e, "." and ".." with a parameter ("..;"), and an escape (%2e, %41 ...) that stands for a
 * character which servers decode to something that would have matched another route. 411 for Transfer-Encoding: where the next request starts
 * must be known. 501 for Upgrade and CONNECT, behind which there may be no further request. 431 when the head does not
 * end inside its packet, 414 and 413 for what exceeds MAX_PATH and 2^31. Where there is a fallback, it gets
 * the connection instead (ingress.bpf.c).
 */
#pragma once

#include "digest.h"
#include "fields.h"
#include "hash.h"
#include "scratch.h"
#include "verdict.h"

/* The digest of the first `length` bytes of scratch.head. */
static __always_inline __u64 head_digest(const struct scratch *scratch, __u32 length)
{
	struct digest digest = {};
	__u32 words = length / 8 & (MAX_WORDS - 1), i;

	for (i = 0; i < words; i++)
		digest_word(&digest, i & (MAX_WORDS - 1), word_at(scratch, 8 * i));
	if (length % 8)
		digest_word(&digest, words, swar_first(word_at(scratch, 8 * words), length % 8));
	return digest_value(&digest);
}

/* The method that `word` starts with, including its space; 0 if none. *length: bytes of both. */
static __always_inline enum method method_of(__u64 word, __u32 *length)
{
	*length = 4;
	if ((__u32)word == CHARS4('G', 'E', 'T', ' '))
		return METHOD_GET;
	if ((__u32)word == CHARS4('P', 'U', 'T', ' '))
		return METHOD_PUT;
	*length = 5;
	if (swar_first(word, 5) == CHARS8('P', 'O', 'S', 'T', ' ', 0, 0, 0))
		return METHOD_POST;
	if (swar_first(word, 5) == CHARS8('H', 'E', 'A', 'D', ' ', 0, 0, 0))
		return METHOD_HEAD;
	*length = 6;
	if (swar_first(word, 6) == CHARS8('P', 'A', 'T', 'C', 'H', ' ', 0, 0))
		return METHOD_PATCH;
	if (swar_first(word, 6) == CHARS8('T', 'R', 'A', 'C', 'E', ' ', 0, 0))
		return METHOD_TRACE;
	*length = 7;
	if (swar_first(word, 7) == CHARS8('D', 'E', 'L', 'E', 'T', 'E', ' ', 0))
		return METHOD_DELETE;
	*length = 8;
	if (word == CHARS8('O', 'P', 'T', 'I', 'O', 'N', 'S', ' '))
		return METHOD_OPTIONS;
	if (word == CHARS8('C', 'O', 'N', 'N', 'E', 'C', 'T', ' '))
		return METHOD_CONNECT;
	return METHOD_ANY;
}

/* ---- request line ------------------------------------------------------------------------------- */

/* Bytes that no path or query may contain. The mask is only compared with 0. */
static __always_inline __u64 forbidden(__u64 text)
{
	return (text & SWAR_HIGH) | swar_equal(text, '#') | swar_equal(text, '\\') | swar_equal(text, 0x7f);
}

static __always_inline int hex_digit(__u8 byte)
{
	if (byte >= '0' && byte <= '9')
		return byte - '0';
	byte |= 0x20;
	return byte >= 'a' && byte <= 'f' ? byte - 'a' + 10 : -1;
}

static __always_inline int is_unreserved(__u8 byte) /* RFC 3986, 2.3 */
{
	__u8 letter = byte | 0x20;

	return (letter >= 'a' && letter <= 'z') || (byte >= '0' && byte <= '9') || byte == '-' || byte == '.' ||
	       byte == '_' || byte == '~';
}

/* May stand in a path as it is, besides unreserved characters (RFC 3986, 3.3: sub-delims, ':' and '@'). */
static __always_inline int is_reserved(__u8 byte)
{
	return byte == '!' || byte == '$' || (byte >= '&' && byte <= ',') || byte == ':' || byte == ';' ||
	       byte == '=' || byte == '@';
}

/* Is the escape at `at` ("%41") the only way to write its character? Unreserved characters, '/', '\' and controls
 * are not; where it has to be the only spelling, either, reserved ones and small hex digits are not. */
static __always_inline int escape_is_needed(const struct scratch *scratch, __u32 at, __u32 strict)
{
	__u8 first = byte_at(scratch, at + 1), second = byte_at(scratch, at + 2);
	int high = hex_digit(first), low = hex_digit(second);
	__u8 byte = high << 4 | low;

	if (high < 0 || low < 0 || byte < 0x20 || byte == 0x7f || byte == '/' || byte == '\\')
		return 0;
	if (strict && (first >= 'a' || second >= 'a' || is_reserved(byte)))
		return 0;
	return !is_unreserved(byte);
}

/* Behind a "." or ".." that is a whole segment but for what follows. */
static __always_inline int is_behind_dots(const struct scratch *scratch, __u32 at)
{
	__u32 before = byte_at(scratch, at - 2) == '.' ? 3 : 2;

	return byte_at(scratch, at - 1) == '.' && byte_at(scratch, at - before) == '/';
}

/* "%3b", or ';' itself: behind it, some servers see a parameter of the segment, and drop it first. */
static __always_inline int is_semicolon(const struct scratch *scratch, __u32 at)
{
	return byte_at(scratch, at) == ';' ||
	       (pair_at(scratch, at) == ('%' | '3' << 8) && (byte_at(scratch, at + 2) | 0x20) == 'b');
}

static __always_inline int is_spelled_so(const struct scratch *scratch, __u32 at, __u32 strict)
{
	__u8 byte = byte_at(scratch, at);

	if (is_semicolon(scratch, at) && is_behind_dots(scratch, at))
		return 0;
	if (byte == '%')
		return escape_is_needed(scratch, at, strict);
	return !strict || byte == '/' || is_unreserved(byte) || is_reserved(byte);
}

/*
 * Is the path spelled in the one way in which routes are compared? Byte by byte, but most paths need no such look.
 * `strict`: routes of the VIP have paths that can be spelled otherwise (rauta/files/paths.py), and a request that does so
 * must not get past them to a shorter prefix. bpf_loop callback; returns 1 behind the path, and when it is refused.
 */
static long check_spelling(__u32 index, void *context)
{
	struct scratch *scratch = get_scratch();
	struct path_reader *reader;

	if (!scratch)
		return 1;
	reader = &scratch->path;
	if (reader->start + index >= reader->at)
		return 1;
	reader->bad = !is_spelled_so(scratch, reader->start + index, reader->strict);
	return !!reader->bad;
}

static __always_inline void note_prefix(struct scratch *scratch, __u32 depth, __u64 hash, __u32 length)
{
	struct prefix *prefix;

	if (depth > MAX_PREFIX_DEPTH)
		return;
	prefix = &scratch->prefix[depth & (PREFIXES - 1)];
	prefix->hash = hash;
	prefix->length = length;
	scratch->request.depth = depth;
}

/* A segment ended before `at`; `text` is its last part of less than 8 bytes. */
static __always_inline void end_segment(struct scratch *scratch, __u64 text, __u32 size)
{
	struct path_reader *reader = &scratch->path;
	__u32 length = reader->at - reader->segment;

	if (length == size && (text == '.' || text == ('.' | '.' << 8)))
		reader->bad = 1;
	reader->hash = hash_mix(reader->hash, text | (__u64)'/' << 8 * size);
	reader->depth++;
	note_prefix(scratch, reader->depth, reader->hash, reader->at - reader->start);
	if (byte_at(scratch, reader->at) != '/') {
		reader->done = 1;
		return;
	}
	if (!length)
		reader->bad = 1;
	reader->at++;
	reader->segment = reader->at;
}

/* A word of a segment, or its last part; bpf_loop callback. Returns 1 behind the path. */
static long read_path_word(__u32 index, void *context)
{
	struct scratch *scratch = get_scratch();
	struct path_reader *reader;
	__u64 word, stop, text;
	__u32 size;

	if (!scratch)
		return 1;
	reader = &scratch->path;
	if (reader->at - reader->start > MAX_PATH)
		return 1;
	word = word_at(scratch, reader->at);
	stop = swar_below(word, 0x21) | swar_equal(word, '/') | swar_equal(word, '?');
	text = stop ? word & swar_before(stop) : word;
	reader->bad |= forbidden(text);
	reader->special |= swar_equal(text, '%') | swar_equal(text, ';');
	if (!stop) {
		reader->hash = hash_mix(reader->hash, text);
		reader->at += 8;
		return 0;
	}
	size = swar_index(stop) & 7;
	reader->at += size;
	end_segment(scratch, text, size);
	return reader->done ? 1 : 0;
}

/*
 * The path, from its first '/' at `start`: hash, prefixes, length. Returns where it stopped (' ' or '?', or
 * something illegal), or 0 when the path is refused for *verdict.
 */
static __always_inline __u32 read_path(struct scratch *scratch, __u32 start, __u32 strict,
				       enum verdict *verdict)
{
	struct path_reader *reader = &scratch->path;
	struct request *request = &scratch->request;

	__builtin_memset(reader, 0, sizeof(*reader));
	reader->hash = route_key;
	reader->start = start;
	reader->strict = strict;
	reader->segment = reader->at = start + 1;
	note_prefix(scratch, 0, route_key, 0);
	bpf_loop(MAX_PATH + 1, read_path_word, NULL, 0);
	request->path = start;
	request->path_length = reader->at - start;
	request->path_hash = reader->hash;
	if (!reader->done || request->path_length > MAX_PATH) {
		*verdict = TX_URI_TOO_LONG;
		return 0;
	}
	if (!reader->bad && (reader->special || strict))
		bpf_loop(MAX_PATH, check_spelling, NULL, 0);
	if (reader->bad) {
		*verdict = TX_BAD_REQUEST;
		return 0;
	}
	return reader->at;
}

/* From the '?' to what ends the query. It is not looked at but for bytes that would end a target elsewhere.
 */
__noinline __u32 skip_query(__u32 at)
{
	const struct scratch *scratch = get_scratch();

	if (!scratch)
		return at;
	for (__u32 i = 0; i < MAX_WORDS; i++) {
		__u64 word = word_at(scratch, at);
		__u64 stop = swar_below(word, 0x21) | swar_equal(word, '#') | swar_equal(word, 0x7f) |
			     (word & SWAR_HIGH);

		if (stop)
			return forget(scratch, at + swar_index(stop));
		at += 8;
	}
	return at;
}

/*
 * "http://name:port" in front of the path (RFC 9112, 3.2.2). Returns where the path starts, or 0; what it
 * names is compared with the Host once that is read.
 */
static __always_inline __u32 read_authority(struct scratch *scratch, __u32 at)
{
	__u32 start = at + 7;

	if (swar_first(word_at(scratch, at), 7) != CHARS8('h', 't', 't', 'p', ':', '/', '/', 0))
		return 0;
	at = start;
	for (__u32 i = 0; i < MAX_HOST / 8 + 1; i++) {
		__u64 word = word_at(scratch, at);
		__u64 stop = swar_equal(word, '/') | swar_below(word, 0x21);

		if (!stop) {
			at = forget(scratch, at + 8);
			continue;
		}
		at = forget(scratch, at + swar_index(stop));
		break;
	}
	scratch->request.authority = start;
	scratch->request.authority_length = at - start;
	return at != start && byte_at(scratch, at) == '/' ? at : 0;
}

/* The '*' of OPTIONS asks about the server as a whole: it is no path, and the route is the one for "/". */
static __always_inline __u32 read_asterisk(struct scratch *scratch, __u32 at)
{
	struct request *request = &scratch->request;

	if (request->method != METHOD_OPTIONS || pair_at(scratch, at) != ('*' | ' ' << 8))
		return 0;
	note_prefix(scratch, 0, route_key, 0);
	request->path = at;
	request->path_length = 1;
	return at + 1;
}

/* A target that does not start with a path. Returns where its path starts, or where the '*' ends, which is no
 * '/'; 0: it is refused. Global: verified once. */
__noinline __u32 read_other_target(__u32 at)
{
	struct scratch *scratch = get_scratch();
	__u32 end;

	if (!scratch)
		return 0;
	end = read_asterisk(scratch, at);
	return end ? end : read_authority(scratch, at);
}

/* Returns 0 and *end behind the line, or the verdict on a request that is refused. */
static __always_inline __u32 read_request_line(struct scratch *scratch, __u32 length, __u32 strict,
					       __u32 *end)
{
	enum verdict verdict;
	__u32 at, start;
	__u64 version;

	scratch->request.method = method_of(word_at(scratch, 0), &at);
	if (scratch->request.method == METHOD_ANY)
		return TX_RESET_NOT_HTTP;
	if (scratch->request.method == METHOD_CONNECT)
		return TX_NOT_IMPLEMENTED;
	start = byte_at(scratch, at) == '/' ? at : read_other_target(at);
	if (!start)
		return broken(at + 1, length);
	at = start;
	if (byte_at(scratch, at) == '/') {
		at = read_path(scratch, at, strict, &verdict);
		if (!at)
			return verdict;
		if (byte_at(scratch, at) == '?')
			at = skip_query(at);
	}
	if (byte_at(scratch, at) != ' ')
		return at >= length ? TX_HEAD_TOO_LARGE : TX_BAD_REQUEST;
	if (at + 11 > length)
		return TX_HEAD_TOO_LARGE;
	version = word_at(scratch, at + 1);
	scratch->request.version_1_0 = version == CHARS8('H', 'T', 'T', 'P', '/', '1', '.', '0');
	if (!scratch->request.version_1_0 && version != CHARS8('H', 'T', 'T', 'P', '/', '1', '.', '1'))
		return TX_BAD_REQUEST;
	if (pair_at(scratch, at + 9) != CRLF)
		return TX_BAD_REQUEST;
	*end = at + 11;
	return 0;
}

/*
 * Reads the request head of `length` bytes in scratch.head into scratch.request. Returns 0, or the verdict
 * on a request that is refused. A global function: the verifier checks it once, whatever the callers know.
 */
__noinline __u32 read_request(__u32 length, __u32 strict)
{
	struct scratch *scratch = get_scratch();
	struct line_reader *lines;
	__u32 refused, at = 0;

	if (!scratch)
		return DROP_NO_ROOM;
	__builtin_memset(&scratch->request, 0, sizeof(scratch->request));
	refused = read_request_line(scratch, length, strict, &at);
	if (refused)
		return refused;
	lines = &scratch->lines;
	lines->at = at;
	lines->length = length;
	lines->verdict = TX_HEAD_TOO_LARGE;
	bpf_loop(MAX_LINES, read_line, NULL, 0);
	if (lines->verdict)
		return lines->verdict;
	scratch->request.head_length = lines->at;
	scratch->request.digest = head_digest(scratch, lines->at);
	return check_fields(&scratch->request);
}
