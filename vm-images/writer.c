/*
 * writer: writes stamped blocks to a block device and tells whether they can be read back.
 *
 * Every thread owns a stripe of blocks and writes random blocks of it with O_DIRECT. A stamp holds the block's number,
 * a sequence number per block and the seed of the run, and ends with a checksum of the whole block, so that lost,
 * stale, misplaced and torn writes can be told apart. README.md has the commands, the lines printed and the stamp's
 * layout; hvext/core/stamp.py checks the same stamps on the host.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <linux/fs.h>

#define MAGIC "HVXSTAMP"
#define HEADER_BYTES 32
#define TRAILER_BYTES 8
#define MAX_THREADS 64
#define MAX_DESCRIBED 4
#define ERROR_LINE_EVERY_US 1000000
#define ERROR_PAUSE_US 10000
#define TICK_MS 200
#define OUT_OF_PLACE "block-number"

enum { EXIT_GOOD = 0, EXIT_BAD = 1, EXIT_USAGE = 2, EXIT_GONE = 3, EXIT_OPEN = 4 };

/* What a block may hold: the stamp `acked`, or any of those up to `tried` whose write failed. */
struct block_state {
	uint32_t acked;
	uint32_t tried;
};

struct stats {
	uint64_t writes, errors;
	uint64_t max_us, window_max_us, total_us;
	uint64_t last_good_us, last_error_line_us;
	int last_errno;
};

struct stamp {
	uint64_t block, sequence, seed;
};

struct tally {
	uint64_t good, bad, unreadable;
	char described[512];
	int n_described;
};

static struct {
	const char *path, *name;
	uint64_t blocks, offset;
	uint32_t block_size, threads, rate, gone_after_s;
	bool check;
} opt = { .blocks = 0, .block_size = 4096, .threads = 4, .gone_after_s = 5 };

static int device = -1;
static uint64_t seed, started_us;
static struct block_state *states;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct stats stats;
static bool pausing, stopping;
static uint32_t parked;
static uint64_t inflight_since_us[MAX_THREADS];

/* ---- small things ---- */

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void sleep_us(uint64_t us)
{
	struct timespec t = { .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000 };
	nanosleep(&t, NULL);
}

/* Prints one line in one write(2), which the tty does not mix with other writers' lines. */
__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
	char line[1200];
	int head = snprintf(line, sizeof line, "WRITER %s ", opt.name);
	va_list args;
	va_start(args, format);
	int body = vsnprintf(line + head, sizeof line - (size_t)head - 1, format, args);
	va_end(args);
	size_t length = (size_t)(head + body);
	if (length > sizeof line - 2)
		length = sizeof line - 2;
	line[length] = '\n';
	if (write(STDOUT_FILENO, line, length + 1) < 0)
		return; /* nobody to tell */
}

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static void *aligned_block(void)
{
	void *memory = NULL;
	if (posix_memalign(&memory, 4096, opt.block_size)) {
		say("failed reason=no-memory");
		exit(EXIT_OPEN);
	}
	return memory;
}

/* ---- the stamp ---- */

static uint32_t crc_table[8][256];

/* CRC-32 as zlib has it, eight bytes a step: under emulation it would otherwise cost more than the write. */
static void prepare_crc(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? 0xEDB88320U ^ (c >> 1) : c >> 1;
		crc_table[0][i] = c;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			crc_table[k][i] = crc_table[0][crc_table[k - 1][i] & 0xFF] ^ (crc_table[k - 1][i] >> 8);
}

/* `bytes` is 4 more than a multiple of 8. */
static uint32_t crc32_of(const unsigned char *data, size_t bytes)
{
	uint32_t c = 0xFFFFFFFFU;
	while (bytes >= 8) {
		uint64_t word;
		memcpy(&word, data, 8);
		word ^= c;
		c = 0;
		for (int k = 0; k < 8; k++)
			c ^= crc_table[7 - k][(word >> (8 * k)) & 0xFF];
		data += 8;
		bytes -= 8;
	}
	while (bytes--)
		c = crc_table[0][(c ^ *data++) & 0xFF] ^ (c >> 8);
	return c ^ 0xFFFFFFFFU;
}

static void put_stamp(unsigned char *block, struct stamp stamp)
{
	uint64_t x = stamp.seed + stamp.block * 0x9E3779B97F4A7C15U + stamp.sequence * 0xBF58476D1CE4E5B9U;
	if (!x)
		x = 1;
	memcpy(block, MAGIC, 8);
	memcpy(block + 8, &stamp, sizeof stamp);
	for (size_t at = HEADER_BYTES; at < opt.block_size - TRAILER_BYTES; at += 8) {
		uint64_t word = next_random(&x);
		memcpy(block + at, &word, 8);
	}
	memset(block + opt.block_size - TRAILER_BYTES, 0, TRAILER_BYTES);
	uint32_t crc = crc32_of(block, opt.block_size - 4);
	memcpy(block + opt.block_size - 4, &crc, 4);
}

static bool is_empty(const unsigned char *block)
{
	return block[0] == 0 && memcmp(block, block + 1, opt.block_size - 1) == 0;
}

/* Returns NULL for a valid stamp of block `number`, else what is wrong; `found` is filled where there is a stamp. */
static const char *stamp_fault(const unsigned char *block, uint64_t number, struct stamp *found)
{
	uint32_t crc;
	*found = (struct stamp){ 0 };
	if (memcmp(block, MAGIC, 8) != 0)
		return "magic";
	memcpy(found, block + 8, sizeof *found);
	memcpy(&crc, block + opt.block_size - 4, 4);
	if (crc != crc32_of(block, opt.block_size - 4))
		return "checksum";
	return found->block == number ? NULL : OUT_OF_PLACE;
}

/* ---- writing ---- */

static bool write_block(const void *buffer, uint64_t number)
{
	ssize_t n = pwrite(device, buffer, opt.block_size, (off_t)(number * opt.block_size));
	if (n >= 0 && n != (ssize_t)opt.block_size)
		errno = EIO;
	return n == (ssize_t)opt.block_size;
}

static void count_good(uint32_t thread)
{
	uint64_t now = now_us();
	pthread_mutex_lock(&lock);
	uint64_t took = now - inflight_since_us[thread];
	inflight_since_us[thread] = 0;
	stats.writes++;
	stats.total_us += took;
	stats.last_good_us = now;
	if (took > stats.max_us)
		stats.max_us = took;
	if (took > stats.window_max_us)
		stats.window_max_us = took;
	pthread_mutex_unlock(&lock);
}

/* Counts every error, prints at most one line a second. */
static void count_error(uint32_t thread, uint64_t number, int error)
{
	uint64_t now = now_us();
	pthread_mutex_lock(&lock);
	inflight_since_us[thread] = 0;
	stats.errors++;
	stats.last_errno = error;
	bool print = !stats.last_error_line_us || now - stats.last_error_line_us >= ERROR_LINE_EVERY_US;
	if (print)
		stats.last_error_line_us = now;
	uint64_t errors = stats.errors;
	pthread_mutex_unlock(&lock);
	if (print)
		say("error name=%s block=%" PRIu64 " errors=%" PRIu64, strerrorname_np(error), number, errors);
}

/* Waits out a pause; false when the run ends. Marks the thread as in flight otherwise. */
static bool may_write(uint32_t thread)
{
	pthread_mutex_lock(&lock);
	if (pausing || stopping) {
		parked++;
		pthread_cond_broadcast(&changed);
		while (pausing && !stopping)
			pthread_cond_wait(&changed, &lock);
		if (!stopping)
			parked--;
	}
	bool go_on = !stopping;
	if (go_on)
		inflight_since_us[thread] = now_us();
	pthread_mutex_unlock(&lock);
	return go_on;
}

static void *write_stripe(void *argument)
{
	uint32_t thread = (uint32_t)(uintptr_t)argument;
	uint64_t first = opt.blocks * thread / opt.threads, end = opt.blocks * (thread + 1) / opt.threads;
	uint64_t x = (seed ^ (0x9E3779B97F4A7C15U * (thread + 1))) | 1, due_us = now_us();
	unsigned char *buffer = aligned_block();

	while (may_write(thread)) {
		uint64_t index = first + next_random(&x) % (end - first), number = opt.offset + index;
		struct block_state *state = &states[index];
		put_stamp(buffer, (struct stamp){ .block = number, .sequence = ++state->tried, .seed = seed });
		if (write_block(buffer, number)) {
			state->acked = state->tried;
			count_good(thread);
		} else {
			count_error(thread, number, errno);
			sleep_us(ERROR_PAUSE_US);
		}
		if (opt.rate) {
			uint64_t now = now_us();
			due_us += 1000000 / opt.rate;
			if (due_us > now)
				sleep_us(due_us - now);
			else
				due_us = now;
		}
	}
	free(buffer);
	return NULL;
}

/* ---- reading back ---- */

static void describe(struct tally *tally, uint64_t number, const char *reason, uint64_t found,
		     const struct block_state *state)
{
	if (tally->n_described++ >= MAX_DESCRIBED)
		return;
	size_t used = strlen(tally->described);
	snprintf(tally->described + used, sizeof tally->described - used, "%s%" PRIu64 ":%s:%" PRIu64 ":%u-%u",
		 used ? "," : "", number, reason, found, state ? state->acked : 0, state ? state->tried : 0);
}

static bool read_block(void *buffer, uint64_t number)
{
	return pread(device, buffer, opt.block_size, (off_t)(number * opt.block_size)) == (ssize_t)opt.block_size;
}

/* What is wrong with a block that this run wrote, or NULL. */
static const char *fault_of_written(const unsigned char *buffer, uint64_t number, const struct block_state *state,
				    struct stamp *found)
{
	const char *fault = stamp_fault(buffer, number, found);
	bool ours = !fault && found->seed == seed;
	if (ours && found->sequence >= state->acked && found->sequence <= state->tried)
		return NULL;
	/* Never acknowledged: what was there before the run may be there still, unless it is half a stamp. */
	if (!state->acked && !ours && (!fault || strcmp(fault, "magic") == 0))
		return NULL;
	if (fault)
		return is_empty(buffer) ? "empty" : fault;
	return !ours ? "seed" : found->sequence < state->acked ? "stale" : "never-written";
}

static struct tally verify_written(void)
{
	struct tally tally = { 0 };
	unsigned char *buffer = aligned_block();
	for (uint64_t index = 0; index < opt.blocks; index++) {
		uint64_t number = opt.offset + index;
		struct stamp found = { 0 };
		if (!states[index].tried)
			continue;
		if (!read_block(buffer, number)) {
			tally.unreadable++;
			describe(&tally, number, "unreadable", 0, &states[index]);
			continue;
		}
		const char *fault = fault_of_written(buffer, number, &states[index], &found);
		if (fault) {
			tally.bad++;
			describe(&tally, number, fault, found.sequence, &states[index]);
		} else {
			tally.good++;
		}
	}
	free(buffer);
	return tally;
}

/* Every block is empty or carries a valid stamp for its own number, whichever run wrote it. */
static int check_all(void)
{
	struct tally tally = { 0 };
	uint64_t empty = 0;
	unsigned char *buffer = aligned_block();
	for (uint64_t index = 0; index < opt.blocks; index++) {
		uint64_t number = opt.offset + index;
		struct stamp found;
		const char *fault = NULL;
		if (!read_block(buffer, number)) {
			tally.unreadable++;
			describe(&tally, number, "unreadable", 0, NULL);
		} else if (is_empty(buffer)) {
			empty++;
		} else if ((fault = stamp_fault(buffer, number, &found))) {
			tally.bad++;
			describe(&tally, number, fault, found.sequence, NULL);
		} else {
			tally.good++;
		}
	}
	free(buffer);
	say("check blocks=%" PRIu64 " valid=%" PRIu64 " empty=%" PRIu64 " bad=%" PRIu64 " unreadable=%" PRIu64 " first=%s",
	    opt.blocks, tally.good, empty, tally.bad, tally.unreadable, tally.n_described ? tally.described : "none");
	return tally.bad || tally.unreadable ? EXIT_BAD : EXIT_GOOD;
}

/* ---- control ---- */

static void report(const char *what, const struct tally *tally)
{
	char verdict[700] = "";
	pthread_mutex_lock(&lock);
	struct stats s = stats;
	uint64_t now = now_us(), inflight_us = 0;
	for (uint32_t i = 0; i < opt.threads; i++)
		if (inflight_since_us[i] && now - inflight_since_us[i] > inflight_us)
			inflight_us = now - inflight_since_us[i];
	stats.window_max_us = 0;
	pthread_mutex_unlock(&lock);
	if (tally)
		snprintf(verdict, sizeof verdict,
			 " blocks=%" PRIu64 " verified=%" PRIu64 " bad=%" PRIu64 " unreadable=%" PRIu64 " first=%s",
			 tally->good + tally->bad + tally->unreadable, tally->good, tally->bad, tally->unreadable,
			 tally->n_described ? tally->described : "none");
	say("%s writes=%" PRIu64 " errors=%" PRIu64 " last_error=%s max_us=%" PRIu64 " window_max_us=%" PRIu64
	    " inflight_us=%" PRIu64 " total_us=%" PRIu64 " elapsed_us=%" PRIu64 "%s",
	    what, s.writes, s.errors, s.last_errno ? strerrorname_np(s.last_errno) : "none", s.max_us, s.window_max_us,
	    inflight_us, s.total_us, now - started_us, verdict);
}

static void pause_writers(void)
{
	pthread_mutex_lock(&lock);
	pausing = true;
	while (parked < opt.threads)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void resume_writers(bool stop)
{
	pthread_mutex_lock(&lock);
	pausing = false;
	stopping = stop;
	stats.last_good_us = now_us();
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* The kernel sets the capacity of a disk that was taken out to 0, for those who still hold it open too. */
static bool device_is_gone(void)
{
	uint64_t bytes = 0, now = now_us();
	pthread_mutex_lock(&lock);
	bool silent = now - stats.last_good_us >= (uint64_t)opt.gone_after_s * 1000000;
	bool failing = stats.last_errno != 0;
	pthread_mutex_unlock(&lock);
	if (!silent || !failing)
		return false;
	return ioctl(device, BLKGETSIZE64, &bytes) < 0 || bytes == 0;
}

static int supervise(const sigset_t *signals)
{
	const struct timespec tick = { .tv_nsec = TICK_MS * 1000000L };
	for (;;) {
		int number = sigtimedwait(signals, NULL, &tick);
		if (number == SIGUSR1) {
			report("status", NULL);
		} else if (number == SIGUSR2) {
			pause_writers();
			struct tally tally = verify_written();
			report("verify", &tally);
			resume_writers(false);
		} else if (number == SIGTERM || number == SIGINT) {
			pause_writers();
			struct tally tally = verify_written();
			report("stopped", &tally);
			return tally.bad || tally.unreadable ? EXIT_BAD : EXIT_GOOD;
		} else if (device_is_gone()) {
			pause_writers();
			report("gone", NULL);
			return EXIT_GONE;
		}
	}
}

static int run_writers(void)
{
	pthread_t threads[MAX_THREADS];
	sigset_t signals;
	sigemptyset(&signals);
	for (size_t i = 0; i < 4; i++)
		sigaddset(&signals, (int[]){ SIGUSR1, SIGUSR2, SIGTERM, SIGINT }[i]);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);

	states = calloc(opt.blocks, sizeof *states);
	if (!states || getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) {
		say("failed reason=no-memory-or-random");
		return EXIT_OPEN;
	}
	started_us = stats.last_good_us = now_us();
	say("started seed=%" PRIu64 " blocks=%" PRIu64 " offset=%" PRIu64 " block_size=%u threads=%u pid=%d", seed, opt.blocks,
	    opt.offset, opt.block_size, opt.threads, (int)getpid());
	for (uint32_t i = 0; i < opt.threads; i++) {
		if (pthread_create(&threads[i], NULL, write_stripe, (void *)(uintptr_t)i)) {
			say("failed reason=no-thread");
			return EXIT_OPEN;
		}
	}
	int status = supervise(&signals);
	resume_writers(true);
	for (uint32_t i = 0; i < opt.threads; i++)
		pthread_join(threads[i], NULL);
	return status;
}

/* ---- command line ---- */

static void usage(FILE *to)
{
	fputs("usage: writer DEVICE [--threads 4] [--blocks 1024] [--block-size 4096] [--offset BLOCKS]\n"
	      "              [--rate WRITES_PER_SECOND_AND_THREAD] [--gone-after 5]\n"
	      "       writer DEVICE --check [--blocks N] [--block-size 4096] [--offset BLOCKS]\n"
	      "\n"
	      "Writes stamped blocks until told otherwise: SIGUSR1 prints the status and starts a new latency window,\n"
	      "SIGUSR2 verifies every block written so far, SIGTERM verifies and ends.\n"
	      "--check reads only: every block must be empty or carry a valid stamp for its place.\n"
	      "Exit status: 0 all good, 1 bad or unreadable blocks, 2 usage, 3 the device went away, 4 cannot open it.\n",
	      to);
}

static uint64_t number_of(const char *text, uint64_t max)
{
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || value > max) {
		fprintf(stderr, "writer: not a number from 0 to %" PRIu64 ": %s\n", max, text);
		exit(EXIT_USAGE);
	}
	return value;
}

static void parse(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "threads", required_argument, NULL, 't' },	{ "blocks", required_argument, NULL, 'n' },
		{ "block-size", required_argument, NULL, 's' }, { "offset", required_argument, NULL, 'o' },
		{ "rate", required_argument, NULL, 'r' },	{ "gone-after", required_argument, NULL, 'g' },
		{ "check", no_argument, NULL, 'c' },		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	for (int c; (c = getopt_long(argc, argv, "h", longs, NULL)) != -1;) {
		switch (c) {
		case 't': opt.threads = (uint32_t)number_of(optarg, MAX_THREADS); break;
		case 'n': opt.blocks = number_of(optarg, 1U << 28); break;
		case 's': opt.block_size = (uint32_t)number_of(optarg, 1U << 20); break;
		case 'o': opt.offset = number_of(optarg, 1ULL << 40); break;
		case 'r': opt.rate = (uint32_t)number_of(optarg, 1000000); break;
		case 'g': opt.gone_after_s = (uint32_t)number_of(optarg, 86400); break;
		case 'c': opt.check = true; break;
		case 'h': usage(stdout); exit(EXIT_GOOD);
		default: usage(stderr); exit(EXIT_USAGE);
		}
	}
	bool power_of_two = opt.block_size >= 512 && (opt.block_size & (opt.block_size - 1)) == 0;
	if (optind != argc - 1 || !opt.threads || !power_of_two) {
		usage(stderr);
		exit(EXIT_USAGE);
	}
	opt.path = argv[optind];
	const char *slash = strrchr(opt.path, '/');
	opt.name = slash ? slash + 1 : opt.path;
}

static uint64_t device_bytes(void)
{
	struct stat about;
	uint64_t bytes = 0;
	if (ioctl(device, BLKGETSIZE64, &bytes) == 0)
		return bytes;
	return fstat(device, &about) == 0 ? (uint64_t)about.st_size : 0;
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	device = open(opt.path, (opt.check ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC);
	if (device < 0) {
		say("failed reason=%s", strerrorname_np(errno));
		return EXIT_OPEN;
	}
	uint64_t there = device_bytes() / opt.block_size;
	if (!opt.blocks)
		opt.blocks = there > opt.offset && there - opt.offset < 1024 ? there - opt.offset : 1024;
	if (opt.offset + opt.blocks > there || opt.blocks < opt.threads) {
		say("failed reason=size device_blocks=%" PRIu64, there);
		return EXIT_USAGE;
	}
	prepare_crc();
	return opt.check ? check_all() : run_writers();
}
