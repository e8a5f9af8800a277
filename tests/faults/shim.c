/* Faults at system calls: preloaded into a process, it counts, records, kills or refuses what is done below one folder.

   gcc -shared -fPIC -o shim.so shim.c -ldl -lpthread;  LD_PRELOAD=shim.so python harness.py
   faults_arm(folder, mode, at, log)     from then on; operations are numbered from 1

   'l' record each operation in `log`: OP, path, second path, offset, length, then that many bytes
   'k' SIGKILL before operation `at`     't' the same, but a write is carried out by half first
   'f' no space left from operation `at` on     'o' no space left for operation `at` alone */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static size_t root_length;
static int mode, log_file = -1;
static long at, count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static ssize_t (*real_write)(int, const void *, size_t);

void faults_arm(const char *folder, int what, long when, const char *log) {
    real_write = dlsym(RTLD_NEXT, "write");
    int (*open_file)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    count = 0;
    at = when;
    if (log) log_file = open_file(log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    mode = what;
}

/* The path of `name` relative to `place`, or of a descriptor where `name` is null; whether it lies below the folder. */
static int watched(int place, const char *name, char *out) {
    char link[64];
    ssize_t length = 0;
    if (!mode) return 0;
    if (name && name[0] == '/') {
        snprintf(out, 4096, "%s", name);
    } else {
        if (place == AT_FDCWD)
            length = getcwd(out, 4096) ? (ssize_t)strlen(out) : -1;
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", place);
            length = readlink(link, out, 4095);
        }
        if (length < 0) return 0;
        out[length] = 0;
        if (name) snprintf(out + length, 4096 - length, "/%s", name);
    }
    return !strncmp(out, root, root_length) && (out[root_length] == '/' || !out[root_length]);
}

/* Numbers one operation. Returns 1 where it is to be refused for want of space, 2 where a write is to be torn. */
static int step(char op, const char *path, const char *other, long offset, const void *data, size_t length) {
    char head[9000];
    int verdict = 0;
    pthread_mutex_lock(&lock);
    count++;
    if (mode == 'l') {
        int n = snprintf(head, sizeof head, "%c\t%s\t%s\t%ld\t%zu\n", op, path, other ? other : "", offset, length);
        real_write(log_file, head, n);
        if (length) real_write(log_file, data, length);
    } else if (mode == 'k' && count == at) {
        kill(getpid(), SIGKILL);
    } else if (mode == 't' && count == at) {
        if (op != 'W') kill(getpid(), SIGKILL);
        verdict = 2;
    } else if ((mode == 'f' && count >= at) || (mode == 'o' && count == at)) {
        verdict = strchr("WOMF", op) != NULL;
    }
    pthread_mutex_unlock(&lock);
    return verdict;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define FULL return errno = ENOSPC, -1

static int opening(int place, const char *name, int flags) {
    char path[4096];
    struct stat status;
    if (!(flags & (O_CREAT | O_TRUNC)) || !watched(place, name, path)) return 0;
    if (!stat(path, &status)) return flags & O_TRUNC ? step('T', path, NULL, 0, NULL, 0) : 0;
    return step('O', path, NULL, 0, NULL, 0);
}

#define OPEN(name, signature, place, ...)                                                                              \
    int name signature {                                                                                               \
        REAL(name);                                                                                                    \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        int bits = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, int) : 0;                                            \
        va_end(rest);                                                                                                  \
        if (opening(place, path, flags)) FULL;                                                                         \
        return real(__VA_ARGS__, bits);                                                                                \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, flags)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, flags)
OPEN(openat, (int place, const char *path, int flags, ...), place, place, path, flags)
OPEN(openat64, (int place, const char *path, int flags, ...), place, place, path, flags)

ssize_t write(int file, const void *data, size_t length) {
    REAL(write);
    char path[4096];
    struct stat status;
    if (watched(file, NULL, path) && !fstat(file, &status) && S_ISREG(status.st_mode)) {
        int append = fcntl(file, F_GETFL) & O_APPEND;
        int verdict = step('W', path, NULL, append ? status.st_size : lseek(file, 0, SEEK_CUR), data, length);
        if (verdict == 1) FULL;
        if (verdict == 2) {
            real(file, data, length / 2);
            kill(getpid(), SIGKILL);
        }
    }
    return real(file, data, length);
}

#define WRITE_AT(name, type)                                                                                           \
    ssize_t name(int file, const void *data, size_t length, type offset) {                                             \
        REAL(name);                                                                                                    \
        char path[4096];                                                                                               \
        if (watched(file, NULL, path) && step('W', path, NULL, offset, data, length)) FULL;                            \
        return real(file, data, length, offset);                                                                       \
    }
WRITE_AT(pwrite, off_t)
WRITE_AT(pwrite64, off64_t)

/* Operations on a path or a descriptor alone. */
#define ONE(name, op, signature, place, path, ...)                                                                     \
    int name signature {                                                                                               \
        REAL(name);                                                                                                    \
        char full[4096];                                                                                               \
        if (watched(place, path, full) && step(op, full, NULL, 0, NULL, 0)) FULL;                                      \
        return real(__VA_ARGS__);                                                                                      \
    }
ONE(fsync, 'F', (int file), file, NULL, file)
ONE(fdatasync, 'F', (int file), file, NULL, file)
ONE(unlink, 'U', (const char *path), AT_FDCWD, path, path)
ONE(rmdir, 'D', (const char *path), AT_FDCWD, path, path)
ONE(unlinkat, flags & AT_REMOVEDIR ? 'D' : 'U', (int place, const char *path, int flags), place, path, place, path, flags)
ONE(mkdir, 'M', (const char *path, mode_t bits), AT_FDCWD, path, path, bits)
ONE(mkdirat, 'M', (int place, const char *path, mode_t bits), place, path, place, path, bits)
ONE(chmod, 'C', (const char *path, mode_t bits), AT_FDCWD, path, path, bits)
ONE(fchmod, 'C', (int file, mode_t bits), file, NULL, file, bits)
ONE(fchmodat, 'C', (int place, const char *path, mode_t bits, int flags), place, path, place, path, bits, flags)

static int moving(int from, const char *old, int to, const char *new, unsigned flags) {
    char one[4096], other[4096];
    int here = watched(from, old, one);
    return (watched(to, new, other) || here) && step(flags & 2 ? 'X' : 'R', one, other, 0, NULL, 0);
}

int rename(const char *old, const char *new) {
    REAL(rename);
    if (moving(AT_FDCWD, old, AT_FDCWD, new, 0)) FULL;
    return real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    if (moving(from, old, to, new, 0)) FULL;
    return real(from, old, to, new);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    REAL(renameat2);
    if (moving(from, old, to, new, flags)) FULL;
    return real(from, old, to, new, flags);
}

#define TRUNCATE(name, type)                                                                                           \
    int name(int file, type length) {                                                                                  \
        REAL(name);                                                                                                    \
        char path[4096];                                                                                               \
        if (watched(file, NULL, path) && step('T', path, NULL, length, NULL, 0)) FULL;                                 \
        return real(file, length);                                                                                     \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

/* Nobody here uses these; were one called below the folder, the enumeration would have a hole: better to fail. */
#define NEVER(name, type, signature, file, ...)                                                                        \
    type name signature {                                                                                              \
        REAL(name);                                                                                                    \
        char path[4096];                                                                                               \
        if (watched(file, NULL, path)) return errno = ENOSYS, -1;                                                      \
        return real(__VA_ARGS__);                                                                                      \
    }
NEVER(writev, ssize_t, (int file, const struct iovec *parts, int n), file, file, parts, n)
NEVER(pwritev, ssize_t, (int file, const struct iovec *parts, int n, off_t offset), file, file, parts, n, offset)
