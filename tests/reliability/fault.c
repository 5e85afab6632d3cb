// Makes chosen system calls of a program fail, and its clock jump: LD_PRELOAD of a library built from this.
//
// PAIRQUET_FAULT      rules apart by ';', each "CALL ERRNO NTH PATTERN": calls of this kind on a path that fits the pattern
//                     (as fnmatch, '*' matches '/' too) are counted, and the NTH fails with ERRNO; with "NTH+" all from
//                     there on; with 0 none does. CALL is open (to read), create (open to write, mkdir), read, write,
//                     fsync, rename or unlink; a rename is met by the path that it makes.
// PAIRQUET_CLOCK      "SECONDS NTH": from the NTH time that it is asked on, the time of day is so many seconds off.
// PAIRQUET_FAULT_LOG  a file that gets a line "hit CALL PATH" for each failure, and "met RULE N" for each rule at the end.
//
// A program that makes its system calls without the C library is out of reach.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_RULES 16

struct rule {
    char call[16];
    int error;
    unsigned long nth;
    int onwards;
    char pattern[PATH_MAX];
    atomic_ulong met;
};

static struct rule rules[MOST_RULES];
static int n_rules;
static long long clock_seconds;
static unsigned long clock_nth;
static atomic_ulong clock_met;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void note(const char *text) {
    const char *path = getenv("PAIRQUET_FAULT_LOG");
    int fd = path ? REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    if (fd < 0) return;
    if (REAL(write)(fd, text, strlen(text)) < 0) {
    } // nobody to tell
    close(fd);
}

__attribute__((constructor)) static void begin(void) {
    const char *clock = getenv("PAIRQUET_CLOCK");
    if (clock) sscanf(clock, "%lld %lu", &clock_seconds, &clock_nth);
    const char *text = getenv("PAIRQUET_FAULT");
    char *copy = text ? strdup(text) : NULL, *rest = copy;
    for (char *one; n_rules < MOST_RULES && (one = strsep(&rest, ";"));) {
        struct rule *rule = &rules[n_rules];
        char nth[24];
        if (sscanf(one, "%15s %d %23s %4095[^;]", rule->call, &rule->error, nth, rule->pattern) != 4) continue;
        char *end;
        rule->nth = strtoul(nth, &end, 10);
        rule->onwards = *end == '+';
        n_rules++;
    }
    free(copy);
}

__attribute__((destructor)) static void end(void) {
    char line[64];
    for (int i = 0; i < n_rules; i++) {
        snprintf(line, sizeof line, "met %d %lu\n", i, atomic_load(&rules[i].met));
        note(line);
    }
    if (clock_nth && atomic_load(&clock_met) >= clock_nth) note("hit clock -\n");
}

static int is_watched(const char *call) {
    for (int i = 0; i < n_rules; i++)
        if (!strcmp(rules[i].call, call)) return 1;
    return 0;
}

// Whether a call is to fail; errno is set then.
static int fails(const char *call, const char *path) {
    for (int i = 0; path && i < n_rules; i++) {
        struct rule *rule = &rules[i];
        if (strcmp(rule->call, call) || fnmatch(rule->pattern, path, 0)) continue;
        unsigned long n = atomic_fetch_add(&rule->met, 1) + 1;
        if (!rule->nth || !(n == rule->nth || (rule->onwards && n > rule->nth))) continue;
        char line[PATH_MAX + 64];
        snprintf(line, sizeof line, "hit %s %s\n", call, path);
        note(line);
        errno = rule->error;
        return 1;
    }
    return 0;
}

static int file_fails(const char *call, int fd) {
    if (!is_watched(call)) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return fails(call, path);
}

// Paths as given, made absolute where they are not.
static int path_fails(const char *call, const char *path) {
    if (!is_watched(call)) return 0;
    char whole[2 * PATH_MAX], here[PATH_MAX];
    if (path[0] == '/' || !getcwd(here, sizeof here)) return fails(call, path);
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    return fails(call, whole);
}

static const char *kind(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR) ? "create" : "open"; }

#define OPEN(name)                                                                     \
    int name(const char *path, int flags, ...) {                                       \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;        \
        va_end(more);                                                                  \
        return path_fails(kind(flags), path) ? -1 : REAL(name)(path, flags, mode);     \
    }
#define OPENAT(name)                                                                   \
    int name(int dir, const char *path, int flags, ...) {                              \
        va_list more;                                                                  \
        va_start(more, flags);                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;        \
        va_end(more);                                                                  \
        return path_fails(kind(flags), path) ? -1 : REAL(name)(dir, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int mkdir(const char *path, mode_t mode) { return path_fails("create", path) ? -1 : REAL(mkdir)(path, mode); }
int unlink(const char *path) { return path_fails("unlink", path) ? -1 : REAL(unlink)(path); }
int rename(const char *from, const char *to) { return path_fails("rename", to) ? -1 : REAL(rename)(from, to); }

ssize_t read(int fd, void *to, size_t n) { return file_fails("read", fd) ? -1 : REAL(read)(fd, to, n); }
ssize_t pread(int fd, void *to, size_t n, off_t at) { return file_fails("read", fd) ? -1 : REAL(pread)(fd, to, n, at); }
ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
    return file_fails("read", fd) ? -1 : REAL(pread64)(fd, to, n, at);
}
ssize_t write(int fd, const void *from, size_t n) { return file_fails("write", fd) ? -1 : REAL(write)(fd, from, n); }
ssize_t writev(int fd, const struct iovec *from, int n) {
    return file_fails("write", fd) ? -1 : REAL(writev)(fd, from, n);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off64_t at) {
    return file_fails("write", fd) ? -1 : REAL(pwrite64)(fd, from, n, at);
}
int ftruncate64(int fd, off64_t n) { return file_fails("write", fd) ? -1 : REAL(ftruncate64)(fd, n); }
int fsync(int fd) { return file_fails("fsync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return file_fails("fsync", fd) ? -1 : REAL(fdatasync)(fd); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    int code = REAL(clock_gettime)(clock, time);
    if (clock == CLOCK_REALTIME && clock_nth && atomic_fetch_add(&clock_met, 1) + 1 >= clock_nth)
        time->tv_sec += clock_seconds;
    return code;
}
