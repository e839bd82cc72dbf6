/*
 * selfcheck: the whole user space of the colo-blk test guest (it is /init).
 *
 * It shows on the serial console, line by line, whether the guest still is the guest it was:
 *
 *   TICK <n> boot=<id> up=<ms>          every 100 ms; n never repeats or jumps within one life of the guest
 *   RAMOK <rounds> writes=<n>           one more full verification of the checked RAM found nothing wrong
 *   RAMFAIL ...                         a wrong word; repeated for ever (with totals), RAMOK never comes back
 *   DISKSCAN <dev> ...                  what the disk held at start
 *   DISKOK <dev> <n> slots=<n> checked=<n>   n: highest record written and flushed
 *   DISKFAIL <dev> ...                  a wrong record; repeated for ever, DISKOK never comes back
 *   NETOK <n>                           n: highest datagram number handed to the kernel
 *   SELFCHECK ...                       remarks
 *
 * Every line is one write(2), so lines of different threads do not mix. Nothing depends on wall time, and nothing
 * is kept outside the guest's own RAM and disks: a guest restored from a checkpoint simply goes on, and what it
 * expects (in RAM) must agree with what it finds (in RAM and on its disks).
 *
 * Words on the kernel command line (defaults in brackets):
 *   colo.mode=idle|mem|disk|all|copy|build [idle]   which workloads run; RAM is verified and ticks printed in every mode
 *   colo.copy_kib=N [4096 in copy, else 0]      copy files through the page cache, N KiB a second
 *   colo.copy_to=PATH [files of the root]       copy to this block device instead, 16 places in turn, flushed after each
 *                                               64 KiB (destroys its content!)
 *   colo.build_units=N [20 in build, else 0]    work as a compiler does on its data, N source files a second
 *   colo.ram_mib=N [64]                 size of the checked area
 *   colo.rate=N [4000 in mem and all, else 0]  random 64-byte lines rewritten per second
 *   colo.fullpages=N [0]                whole random pages rewritten per second
 *   colo.round_ms=N [1000]              aim for one full RAM verification in this time
 *   colo.disk=0|1 [1 in disk and all]   write records to every disk found (destroys their content!)
 *   colo.disks=N [0]                    wait up to 10 s for so many disks
 *   colo.disk_rate=N [100; 0 in disk]   records per second and disk, 0: as fast as possible
 *   colo.disk_mib=N [64]                use at most the first N MiB of each disk
 *   colo.disk_batch=N [1; 16 in disk]   largest batch in records (1...16)
 *   colo.fsync=N [1]                    flush after every N batches
 *   colo.ahead=0|1 [1]                  check the slots of a batch before overwriting them: shows writes of the future
 *   colo.scrub_ms=N [10]                besides random checks, check the next 16 slots in turn every N ms
 *   colo.net=0|1 [0], colo.net_port=N [9999], colo.net_ms=N [20]   UDP "SEQ <n> boot=<id>" to 10.0.2.2
 *   colo.nets=N [1]                     the same on N cards; card i is 10.0.<2+i>.15 and sends to 10.0.<2+i>.2
 *   colo.echo_port=N [0: none]          TCP server that sends back what it gets
 *   colo.tick_ms=N [100]
 *   colo.poweroff_after=SECONDS [never]
 *
 * A disk record is 4096 bytes, little endian, record n of a disk with S slots is at slot n % S:
 *   0 magic "COLOREC1", 8 number, 16 seed, 24 slots S, 32 payload (507 words: splitmix64(seed ^ number * K + word)),
 *   4088 CRC-32 (zlib's) of the first 4088 bytes, 4092 zero.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <linux/fs.h>
#include <time.h>
#include <unistd.h>

/* ---- common ---------------------------------------------------------------------------------------------------- */

static int console = 2;
static char cmdline[4096];
static char boot_id[9] = "00000000";

static void say(const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (length < 0) return;
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    ssize_t ignored = write(console, line, length);
    (void)ignored;
}

static uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void sleep_ms(uint64_t ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

static bool word(const char *key, char *value, size_t size) {
    size_t length = strlen(key);
    bool found = false;
    for (const char *at = cmdline; *at;) {
        size_t token = strcspn(at, " \n");
        if (token > length && at[length] == '=' && !strncmp(at, key, length)) { /* the last one wins */
            snprintf(value, size, "%.*s", (int)(token - length - 1), at + length + 1);
            found = true;
        }
        at += token;
        at += strspn(at, " \n");
    }
    return found;
}

static uint64_t number(const char *key, uint64_t otherwise) {
    char value[32], *end;
    if (!word(key, value, sizeof value)) return otherwise;
    uint64_t n = strtoull(value, &end, 10);
    if (end == value || *end) {
        say("SELFCHECK bad number in %s=%s, using %llu", key, value, (unsigned long long)otherwise);
        return otherwise;
    }
    return n;
}

static inline uint64_t mix(uint64_t x) { /* splitmix64 */
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t draw(uint64_t *state) { return mix((*state)++); }

static void start(void *(*body)(void *), void *argument) {
    pthread_t thread;
    int error = pthread_create(&thread, NULL, body, argument);
    if (error) say("SELFCHECK cannot start a thread: %s", strerror(error));
}

/* ---- RAM --------------------------------------------------------------------------------------------------------
 * The area consists of 64-byte lines. Line l of version v holds eight words computed from (l, v). The versions are a
 * table of bytes apart from the area, and `promise` is a weighted sum of the whole table, so that a page of the area,
 * a page of the table, or both, coming from another moment are noticed.
 */
enum { line_words = 8, page_lines = 64 };
static uint64_t *area, line_count, promise, ram_writes, ram_rounds;
static uint8_t *versions;

static inline uint64_t line_base(uint64_t line, uint8_t version) { return mix(line * 256 + version); }
static inline uint64_t line_word(uint64_t base, uint64_t i) {
    uint64_t x = (base + i) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}
static inline uint64_t weight(uint64_t line) { return (line * 0x9e3779b97f4a7c15u) | 1; }

static void rewrite(uint64_t line) {
    uint8_t old = versions[line], new = old + 1;
    promise += weight(line) * (uint64_t)((int64_t)new - (int64_t)old);
    versions[line] = new;
    uint64_t base = line_base(line, new), *words = area + line * line_words;
    for (uint64_t i = 0; i < line_words; i++) words[i] = line_word(base, i);
    ram_writes++;
}

static uint64_t ram_bad;
static void ram_wrong(uint64_t line, uint64_t i, uint64_t expected, uint64_t found) {
    if (ram_bad++ < 16)
        say("RAMFAIL page=%llu offset=%llu version=%u expected=%016llx found=%016llx round=%llu writes=%llu address=%p",
            (unsigned long long)(line / page_lines), (unsigned long long)((line % page_lines) * 64 + i * 8),
            versions[line], (unsigned long long)expected, (unsigned long long)found, (unsigned long long)ram_rounds,
            (unsigned long long)ram_writes, (void *)(area + line * line_words + i));
}

static void verify_lines(uint64_t from, uint64_t to) {
    for (uint64_t line = from; line < to; line++) {
        uint64_t base = line_base(line, versions[line]), *words = area + line * line_words;
        for (uint64_t i = 0; i < line_words; i++) {
            uint64_t expected = line_word(base, i), found = *(volatile uint64_t *)(words + i);
            if (expected != found) ram_wrong(line, i, expected, found);
        }
    }
}

static void *ram_thread(void *unused) {
    (void)unused;
    char mode[16] = "idle";
    word("colo.mode", mode, sizeof mode);
    bool writes = !strcmp(mode, "mem") || !strcmp(mode, "all");
    uint64_t mib = number("colo.ram_mib", 64), rate = number("colo.rate", writes ? 4000 : 0);
    uint64_t full = number("colo.fullpages", 0), round_ms = number("colo.round_ms", 1000);
    if (!mib) return NULL;
    if (!round_ms) round_ms = 1;
    line_count = mib << 14;
    area = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    versions = mmap(NULL, line_count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED || versions == MAP_FAILED) {
        say("RAMFAIL cannot allocate %llu MiB: %s", (unsigned long long)mib, strerror(errno));
        return NULL;
    }
    for (uint64_t line = 0; line < line_count; line++) {
        uint64_t base = line_base(line, 0), *words = area + line * line_words;
        for (uint64_t i = 0; i < line_words; i++) words[i] = line_word(base, i);
        versions[line] = 0; /* touches the table, so that it has pages of its own */
        *(volatile uint8_t *)(versions + line) = 0;
        if (line % (page_lines * 512) == 0) sched_yield();
    }
    say("SELFCHECK ram mib=%llu rate=%llu fullpages=%llu mode=%s", (unsigned long long)mib, (unsigned long long)rate,
        (unsigned long long)full, mode);

    uint64_t lines_done = 0, pages_done = 0, position = 0, started = now_ms(), last = started, shouted = 0;
    uint64_t random = 1, pages = line_count / page_lines, budget = 0, checked_from = started;
    for (;;) {
        sleep_ms(10);
        uint64_t now = now_ms(), step = now - last;
        last = now;
        if (step > 250) { /* a long stall (or a slow host) is not caught up with */
            started += step - 250;
            step = 250;
        }
        uint64_t elapsed = now - started;
        for (uint64_t due = elapsed * rate / 1000; lines_done < due; lines_done++) rewrite(draw(&random) % line_count);
        for (uint64_t due = elapsed * full / 1000; pages_done < due; pages_done++) {
            uint64_t page = draw(&random) % pages;
            for (uint64_t i = 0; i < page_lines; i++) rewrite(page * page_lines + i);
        }
        budget += step * pages;
        uint64_t some = budget / round_ms;
        budget -= some * round_ms;
        while (some) {
            uint64_t these = some < pages - position ? some : pages - position;
            verify_lines(position * page_lines, (position + these) * page_lines);
            position += these;
            some -= these;
            if (position == pages) {
                uint64_t sum = 0;
                for (uint64_t line = 0; line < line_count; line++) sum += weight(line) * versions[line];
                if (sum != promise && ram_bad++ < 16)
                    say("RAMFAIL version table: sum=%016llx expected=%016llx writes=%llu", (unsigned long long)sum,
                        (unsigned long long)promise, (unsigned long long)ram_writes);
                position = 0;
                ram_rounds++;
                uint64_t end = now_ms();
                if (!ram_bad)
                    say("RAMOK %llu writes=%llu ms=%llu", (unsigned long long)ram_rounds, (unsigned long long)ram_writes,
                        (unsigned long long)(end - checked_from));
                checked_from = end;
                break; /* one round at most between two sleeps */
            }
        }
        if (ram_bad && now - shouted >= 200) {
            say("RAMFAIL total=%llu round=%llu", (unsigned long long)ram_bad, (unsigned long long)ram_rounds);
            shouted = now;
        }
    }
}

/* ---- disks ------------------------------------------------------------------------------------------------------ */

enum { record_size = 4096, batch_max = 16 };
struct record {
    char magic[8];
    uint64_t number, seed, slots, payload[507];
    uint32_t crc, zero;
};
_Static_assert(sizeof(struct record) == record_size, "a record is one 4 KiB block");

static uint32_t crc_table[8][256];
static void crc_prepare(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
        crc_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int t = 1; t < 8; t++) crc_table[t][i] = crc_table[0][crc_table[t - 1][i] & 255] ^ (crc_table[t - 1][i] >> 8);
}
static uint32_t crc32_words(const uint64_t *words, size_t count) {
    uint32_t c = ~0u;
    for (size_t i = 0; i < count; i++) {
        uint64_t x = words[i] ^ c;
        c = crc_table[7][x & 255] ^ crc_table[6][x >> 8 & 255] ^ crc_table[5][x >> 16 & 255] ^ crc_table[4][x >> 24 & 255]
          ^ crc_table[3][x >> 32 & 255] ^ crc_table[2][x >> 40 & 255] ^ crc_table[1][x >> 48 & 255] ^ crc_table[0][x >> 56];
    }
    return ~c;
}

struct disk {
    char path[24];
    int file;
    uint64_t seed, slots, next, checked, bad, random;
    struct record *batch, *other;
};

static void record_make(struct record *r, uint64_t n, const struct disk *d) {
    memcpy(r->magic, "COLOREC1", 8);
    r->number = n;
    r->seed = d->seed;
    r->slots = d->slots;
    uint64_t base = d->seed ^ (n * 0xd6e8feb86659fd93u);
    for (int i = 0; i < 507; i++) r->payload[i] = mix(base + i);
    r->crc = crc32_words((const uint64_t *)r, 511);
    r->zero = 0;
}

static bool record_valid(const struct record *r) {
    return !memcmp(r->magic, "COLOREC1", 8) && r->crc == crc32_words((const uint64_t *)r, 511);
}

__attribute__((format(printf, 2, 3)))
static void disk_wrong(struct disk *d, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (d->bad++ < 16) say("DISKFAIL %s %s next=%llu", d->path, text, (unsigned long long)d->next);
}

static bool transfer(struct disk *d, bool write_it, void *buffer, uint64_t slot, uint64_t count) {
    char *at = buffer;
    off_t offset = slot * record_size;
    size_t left = count * record_size;
    while (left) {
        ssize_t done = write_it ? pwrite(d->file, at, left, offset) : pread(d->file, at, left, offset);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) {
            disk_wrong(d, "%s at %lld: %s", write_it ? "write" : "read", (long long)offset,
                       done ? strerror(errno) : "end of disk");
            return false;
        }
        at += done, offset += done, left -= done;
    }
    return true;
}

/* Checks `count` slots from `slot` on (no wrap) against what this guest remembers having written. */
static void disk_verify(struct disk *d, uint64_t slot, uint64_t count) {
    if (!transfer(d, false, d->other, slot, count)) return;
    for (uint64_t i = 0; i < count; i++) {
        const struct record *r = d->other + i;
        uint64_t s = slot + i, last = d->next - 1;
        d->checked++;
        if (!d->next || s > last) { /* never written with this seed: must not hold a record of ours */
            if (record_valid(r) && r->seed == d->seed)
                disk_wrong(d, "record from the future: slot=%llu found=%llu expected=none", (unsigned long long)s,
                           (unsigned long long)r->number);
            continue;
        }
        uint64_t expected = last - (last % d->slots + d->slots - s) % d->slots;
        if (!record_valid(r))
            disk_wrong(d, "damaged or missing: slot=%llu expected=%llu first words=%016llx %016llx", (unsigned long long)s,
                       (unsigned long long)expected, (unsigned long long)((const uint64_t *)r)[0],
                       (unsigned long long)r->number);
        else if (r->seed != d->seed || r->number != expected)
            disk_wrong(d, "record from %s: slot=%llu expected=%llu found=%llu seed=%016llx/%016llx",
                       r->seed != d->seed ? "another guest" : r->number > expected ? "the future" : "the past",
                       (unsigned long long)s, (unsigned long long)expected, (unsigned long long)r->number,
                       (unsigned long long)d->seed, (unsigned long long)r->seed);
        else { /* the checksum is right, but is it our payload? */
            uint64_t base = d->seed ^ (r->number * 0xd6e8feb86659fd93u);
            for (int w = 0; w < 507; w += 13)
                if (r->payload[w] != mix(base + w)) {
                    disk_wrong(d, "wrong payload: slot=%llu record=%llu word=%d", (unsigned long long)s,
                               (unsigned long long)r->number, w);
                    break;
                }
        }
    }
}

static void disk_write(struct disk *d, uint64_t count, bool flush) {
    uint64_t slot = d->next % d->slots;
    if (count > d->slots - slot) count = d->slots - slot;
    for (uint64_t i = 0; i < count; i++) record_make(d->batch + i, d->next + i, d);
    if (!transfer(d, true, d->batch, slot, count)) {
        sleep_ms(100);
        return;
    }
    if (flush && fdatasync(d->file)) disk_wrong(d, "flush: %s", strerror(errno));
    d->next += count;
}

/*
 * What an earlier boot left. All records of the newest seed must be there without a gap up to the highest one, except
 * that the last batch (not flushed when the power failed) may be torn. Numbering goes on after the last good one.
 */
static void disk_scan(struct disk *d) {
    uint64_t *found = calloc(d->slots, sizeof *found), valid = 0, highest = 0, seed = 0;
    if (!found) return;
    for (int pass = 0; pass < 2; pass++)
        for (uint64_t slot = 0; slot < d->slots; slot += batch_max) {
            uint64_t count = d->slots - slot < batch_max ? d->slots - slot : batch_max;
            if (!transfer(d, false, d->other, slot, count)) break;
            for (uint64_t i = 0; i < count; i++) {
                const struct record *r = d->other + i;
                if (!record_valid(r) || r->slots != d->slots || r->number % d->slots != slot + i) continue;
                if (pass == 0) {
                    if (!seed || r->number >= highest) highest = r->number, seed = r->seed;
                } else if (r->seed == seed)
                    found[slot + i] = r->number + 1, valid++;
            }
            if (pass == 1 && !seed) break;
        }
    if (seed) {
        uint64_t first = highest + 1 > d->slots ? highest + 1 - d->slots : 0, good = highest + 1;
        for (uint64_t n = first; n <= highest; n++)
            if (found[n % d->slots] != n + 1) {
                /* A slot of the torn last batch may still hold the record of the round before. */
                if (n + batch_max > highest) { good = n; break; }
                if (n + d->slots < highest + 1 + batch_max) continue;
                disk_wrong(d, "at start: slot=%llu expected=%llu found=%lld highest=%llu", (unsigned long long)(n % d->slots),
                           (unsigned long long)n, (long long)found[n % d->slots] - 1, (unsigned long long)highest);
            }
        d->seed = seed;
        d->next = good;
        while (d->next <= highest) disk_write(d, highest + 1 - d->next < batch_max ? highest + 1 - d->next : batch_max, true);
    } else
        d->seed = mix(mix(strtoull(boot_id, NULL, 16)) + (uint8_t)d->path[strlen(d->path) - 1]) | 1;
    say("DISKSCAN %s valid=%llu next=%llu slots=%llu seed=%016llx", d->path, (unsigned long long)valid,
        (unsigned long long)d->next, (unsigned long long)d->slots, (unsigned long long)d->seed);
    free(found);
}

static void *disk_thread(void *argument) {
    struct disk *d = argument;
    char mode[16] = "idle";
    word("colo.mode", mode, sizeof mode);
    bool heavy = !strcmp(mode, "disk");
    uint64_t rate = number("colo.disk_rate", heavy ? 0 : 100), most = number("colo.disk_batch", heavy ? 16 : 1);
    uint64_t every = number("colo.fsync", 1), batches = 0, bytes = 0, limit = number("colo.disk_mib", 64) << 20;
    if (most < 1) most = 1;
    if (most > batch_max) most = batch_max;
    if (!every) every = 1;
    d->file = open(d->path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (d->file < 0 || ioctl(d->file, BLKGETSIZE64, &bytes) || bytes < 64 * record_size
        || posix_memalign((void **)&d->batch, 4096, batch_max * record_size)
        || posix_memalign((void **)&d->other, 4096, batch_max * record_size)) {
        say("DISKFAIL %s cannot be used: %s", d->path, strerror(errno));
        return NULL;
    }
    if (limit && bytes > limit) bytes = limit;
    d->slots = bytes / record_size;
    disk_scan(d);
    uint64_t started = now_ms(), base = d->next, reported = 0, shouted = 0, last = started;
    bool ahead = number("colo.ahead", 1);
    uint64_t scrub_ms = number("colo.scrub_ms", 10), scrubbed = started, position = 0;
    for (;;) {
        uint64_t now = now_ms();
        if (now - last > 500) started += now - last - 500;
        last = now;
        uint64_t count = 1 + draw(&d->random) % most;
        if (rate) {
            uint64_t due = base + (now - started) * rate / 1000;
            if (d->next >= due) {
                sleep_ms(5);
                count = 0;
            } else if (count > due - d->next)
                count = due - d->next;
        }
        if (count) {
            if (ahead) {
                uint64_t slot = d->next % d->slots;
                if (count > d->slots - slot) count = d->slots - slot;
                disk_verify(d, slot, count);
            }
            disk_write(d, count, ++batches % every == 0);
            /* The slot just written, or any other. */
            uint64_t random = draw(&d->random);
            disk_verify(d, random % 4 ? random / 4 % d->slots : (d->next - 1) % d->slots, 1);
        }
        if (now - scrubbed >= scrub_ms) {
            scrubbed = now;
            disk_verify(d, position, d->slots - position < batch_max ? d->slots - position : batch_max);
            position = position + batch_max < d->slots ? position + batch_max : 0;
        }
        if (!d->bad && d->next && now - reported >= 400) {
            reported = now;
            say("DISKOK %s %llu slots=%llu checked=%llu", d->path, (unsigned long long)(d->next - 1),
                (unsigned long long)d->slots, (unsigned long long)d->checked);
        }
        if (d->bad && now - shouted >= 200) {
            shouted = now;
            say("DISKFAIL %s total=%llu next=%llu", d->path, (unsigned long long)d->bad, (unsigned long long)d->next);
        }
    }
}

static int disks_find(struct disk *disks, int most) {
    int count = 0;
    const char *forms[] = {"/dev/vd%c", "/dev/sd%c"};
    for (int form = 0; form < 2; form++)
        for (char letter = 'a'; letter <= 'z' && count < most; letter++) {
            char path[24];
            struct stat status;
            snprintf(path, sizeof path, forms[form], letter);
            if (stat(path, &status) || !S_ISBLK(status.st_mode)) continue;
            memset(disks + count, 0, sizeof *disks);
            snprintf(disks[count++].path, sizeof disks->path, "%s", path);
        }
    return count;
}

static void disks_start(void) {
    static struct disk disks[16];
    char mode[16] = "idle";
    word("colo.mode", mode, sizeof mode);
    bool wanted = number("colo.disk", !strcmp(mode, "disk") || !strcmp(mode, "all"));
    int expected = number("colo.disks", 0), count = 0;
    for (uint64_t from = now_ms(); (count = disks_find(disks, 16)) < expected && now_ms() - from < 10000;) sleep_ms(10);
    if (count < expected) say("DISKFAIL only %d of %d disks appeared", count, expected);
    say("SELFCHECK disks=%d writing=%d", count, wanted);
    if (!wanted) return;
    crc_prepare();
    for (int i = 0; i < count; i++) start(disk_thread, disks + i);
}

/* ---- network ---------------------------------------------------------------------------------------------------- */

static in_addr_t net_address(int card, int host) { return htonl(10u << 24 | (2 + card) << 8 | host); }

static void *net_thread(void *argument) {
    int card = *(int *)argument, s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {0};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    snprintf(request.ifr_name, sizeof request.ifr_name, "eth%d", card);
    for (uint64_t from = now_ms(); ioctl(s, SIOCGIFINDEX, &request);) {
        if (now_ms() - from > 10000) {
            say("SELFCHECK no %s", request.ifr_name);
            return NULL;
        }
        sleep_ms(10);
    }
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = net_address(card, 15);
    if (ioctl(s, SIOCSIFADDR, &request)) say("SELFCHECK address: %s", strerror(errno));
    address->sin_addr.s_addr = inet_addr("255.255.255.0");
    if (ioctl(s, SIOCSIFNETMASK, &request)) say("SELFCHECK mask: %s", strerror(errno));
    if (ioctl(s, SIOCGIFFLAGS, &request)) say("SELFCHECK flags: %s", strerror(errno));
    request.ifr_flags |= IFF_UP;
    if (ioctl(s, SIOCSIFFLAGS, &request)) say("SELFCHECK up: %s", strerror(errno));
    uint64_t port = number("colo.net_port", 9999), period = number("colo.net_ms", 20), n = 0, reported = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = net_address(card, 2);
    for (uint64_t next = now_ms();;) {
        char text[64];
        int length = snprintf(text, sizeof text, "SEQ %llu boot=%s\n", (unsigned long long)n, boot_id);
        /* A datagram that the kernel did not take keeps its number: a gap seen outside is a lost packet. An ICMP error
         * for an earlier datagram (nobody listening) also lands here. */
        if (sendto(s, text, length, 0, (struct sockaddr *)&to, sizeof to) == length) n++;
        uint64_t now = now_ms();
        if (!card && n && now - reported >= 500) {
            reported = now;
            say("NETOK %llu", (unsigned long long)(n - 1));
        }
        next += period;
        if (next > now) sleep_ms(next - now);
        else next = now;
    }
}

static void *echo_connection(void *argument) {
    int s = *(int *)argument, one = 1;
    static __thread char buffer[64 << 10];
    free(argument);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    for (ssize_t count; (count = recv(s, buffer, sizeof buffer, 0)) > 0;) {
        for (ssize_t done = 0, sent; done < count; done += sent)
            if ((sent = send(s, buffer + done, count - done, MSG_NOSIGNAL)) <= 0) goto out;
    }
out:
    close(s);
    return NULL;
}

static void *echo_thread(void *argument) {
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(*(int *)argument)};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(s, (struct sockaddr *)&address, sizeof address) || listen(s, 16)) {
        say("SELFCHECK echo: %s", strerror(errno));
        return NULL;
    }
    for (;;) {
        int *connection = malloc(sizeof *connection);
        if (!connection) return NULL;
        if ((*connection = accept(s, NULL, NULL)) >= 0) {
            start(echo_connection, connection);
        } else {
            free(connection);
            sleep_ms(10);
        }
    }
}

static void net_start(void) {
    static int cards[8], port;
    int count = number("colo.nets", 1);
    if (!number("colo.net", 0)) return;
    for (int i = 0; i < count && i < 8; i++) {
        cards[i] = i;
        start(net_thread, cards + i);
    }
    port = number("colo.echo_port", 0);
    if (port) start(echo_thread, &port);
}

/* ---- load without checks ---------------------------------------------------------------------------------------
 * Two workloads for what memory looks like, not for what it must be: files copied through the page cache of the root
 * file system, and text turned into words, words into a tree of small objects, the tree into a file, as compilers do.
 */
static size_t text_make(char *text, size_t size, uint64_t *random) {
    static const char *words[] = {"static", "int", "return", "struct", "buffer", "offset", "length", "const", "char *",
                                  "while", "if (", ") {", "}\n", ";\n    ", "= ", "+ ", "->", "0x", "NULL", "sizeof"};
    size_t used = 0;
    while (used + 24 < size) {
        uint64_t r = draw(random);
        const char *w = words[r % 20];
        used += snprintf(text + used, size - used, r & 0x700 ? "%s " : "%s name_%llu ", w, (unsigned long long)(r >> 40 & 1023));
    }
    return used;
}

static bool file_write(const char *path, const void *bytes, size_t count) {
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    bool good = file >= 0 && write(file, bytes, count) == (ssize_t)count;
    if (file >= 0) close(file);
    return good;
}

static void *copy_thread(void *argument) {
    uint64_t rate = *(uint64_t *)argument, random = 7, n = 0, done = 0, started = now_ms();
    enum { source_size = 4 << 20, piece = 64 << 10 };
    char *text = malloc(source_size), *buffer = malloc(piece), path[32];
    if (!text || !buffer || !file_write("/source", text, text_make(text, source_size, &random))) return NULL;
    bool to_disk = word("colo.copy_to", path, sizeof path);
    say("SELFCHECK copy kib=%llu", (unsigned long long)rate);
    for (;; n++) {
        if (!to_disk) {
            snprintf(path, sizeof path, "/copy%llu", (unsigned long long)(n % 3));
            unlink(path);
        }
        int from = open("/source", O_RDONLY | O_CLOEXEC);
        int to = open(path, O_WRONLY | (to_disk ? 0 : O_CREAT) | O_CLOEXEC, 0600);
        if (to_disk && to >= 0) lseek(to, (n % 16) * source_size, SEEK_SET);
        if (to < 0) say("SELFCHECK copy: %s: %s", path, strerror(errno)), sleep_ms(1000);
        ssize_t count;
        while (from >= 0 && to >= 0 && (count = read(from, buffer, piece)) > 0) {
            if (write(to, buffer, count) != count) break;
            if (to_disk) fdatasync(to);
            done += count;
            while ((now_ms() - started) * rate / 1000 < done >> 10) sleep_ms(5);
        }
        if (from >= 0) close(from);
        if (to >= 0) close(to);
    }
}

struct node {
    struct node *next, *left, *right;
    uint32_t hash, line, kind, length;
    const char *name;
};

static void *build_thread(void *argument) {
    uint64_t rate = *(uint64_t *)argument, random = 11, started = now_ms();
    enum { text_size = 64 << 10, nodes_max = 16384, table_size = 4096 };
    char *text = malloc(text_size), *out = malloc(2 * text_size), path[32];
    struct node *nodes = malloc(nodes_max * sizeof *nodes), **table = malloc(table_size * sizeof *table);
    if (!text || !out || !nodes || !table) return NULL;
    say("SELFCHECK build units=%llu", (unsigned long long)rate);
    for (uint64_t n = 0;; n++) {
        while ((now_ms() - started) * rate / 1000 < n) sleep_ms(5);
        size_t length = text_make(text, text_size, &random), used = 0, emitted = 0;
        uint32_t line = 0;
        memset(table, 0, table_size * sizeof *table);
        struct node *root = NULL;
        for (size_t at = 0; at < length && used < nodes_max;) {
            size_t end = at;
            uint32_t hash = 2166136261u;
            while (end < length && text[end] != ' ' && text[end] != '\n') hash = (hash ^ text[end++]) * 16777619u;
            struct node *node = &nodes[used++], **place = &table[hash % table_size];
            *node = (struct node){*place, NULL, NULL, hash, line, hash & 7, end - at, text + at};
            *place = node;
            struct node **leaf = &root;
            for (int depth = 0; *leaf && depth < 64; depth++) leaf = hash < (*leaf)->hash ? &(*leaf)->left : &(*leaf)->right;
            if (!*leaf) *leaf = node;
            for (at = end; at < length && (text[at] == ' ' || text[at] == '\n'); at++) line += text[at] == '\n';
        }
        for (size_t i = 0; i < used && emitted + 16 < 2 * text_size; i++) {
            uint64_t code[2] = {nodes[i].hash * 0x9e3779b9u, nodes[i].kind << 8 | nodes[i].length};
            memcpy(out + emitted, code, sizeof code);
            emitted += sizeof code;
        }
        snprintf(path, sizeof path, "/unit%llu.o", (unsigned long long)(n % 64));
        unlink(path);
        if (!file_write(path, out, emitted)) say("SELFCHECK build: %s", strerror(errno));
    }
}

static void load_start(void) {
    static uint64_t copy, build;
    char mode[16] = "idle";
    word("colo.mode", mode, sizeof mode);
    copy = number("colo.copy_kib", strcmp(mode, "copy") ? 0 : 4096);
    build = number("colo.build_units", strcmp(mode, "build") ? 0 : 20);
    if (copy) start(copy_thread, &copy);
    if (build) start(build_thread, &build);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void *tick_thread(void *unused) {
    (void)unused;
    uint64_t period = number("colo.tick_ms", 100), next = now_ms();
    if (!period) period = 1;
    for (uint64_t n = 0;; n++) {
        uint64_t now = now_ms();
        say("TICK %llu boot=%s up=%llu", (unsigned long long)n, boot_id, (unsigned long long)now);
        next += period;
        if (next > now) sleep_ms(next - now);
        else next = now;
    }
    return NULL;
}

static void modules_load(void) {
    FILE *list = fopen("/modules/list", "re");
    char name[64], path[96];
    if (!list) return;
    while (fscanf(list, "%63s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s.ko", name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST))
            say("SELFCHECK module %s: %s", name, strerror(errno));
        if (file >= 0) close(file);
    }
    fclose(list);
}

static void text_read(const char *path, char *text, size_t size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? 0 : read(file, text, size - 1);
    text[length > 0 ? length : 0] = 0;
    if (file >= 0) close(file);
}

int main(void) {
    mkdir("/proc", 0755), mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    int tty = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (tty >= 0) {
        struct termios mode;
        if (!tcgetattr(tty, &mode)) {
            cfmakeraw(&mode);
            tcsetattr(tty, TCSANOW, &mode);
        }
        console = tty;
    }
    text_read("/proc/cmdline", cmdline, sizeof cmdline);
    text_read("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
    start(tick_thread, NULL);
    modules_load();
    start(ram_thread, NULL);
    disks_start();
    load_start();
    net_start();
    uint64_t life = number("colo.poweroff_after", 0);
    if (life) {
        sleep_ms(life * 1000);
        say("SELFCHECK poweroff");
        sleep_ms(100);
        sync();
        reboot(RB_POWER_OFF);
    }
    for (;;) pause();
}
