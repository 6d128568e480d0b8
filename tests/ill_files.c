/* While the file $ILL_FLAG exists, opening (and listing, and reading at an offset) a path that contains $ILL_MATCH fails with
   $ILL_ERRNO, as on an ill disk, share or machine. Built and preloaded by ill_files.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int ill(const char *path) {
    const char *match = getenv("ILL_MATCH"), *flag = getenv("ILL_FLAG"), *number = getenv("ILL_ERRNO");
    if (!match || !flag || !number || !path || !strstr(path, match) || access(flag, F_OK)) return 0;
    errno = atoi(number);
    return 1;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if (ill(path)) return -1; \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
        return real(path, flags, mode); }
OPEN(open) OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \
        if (ill(path)) return -1; \
        int (*real)(int, const char *, int, ...) = dlsym(RTLD_NEXT, #name); \
        return real(folder, path, flags, mode); }
OPENAT(openat) OPENAT(openat64)

DIR *opendir(const char *path) {
    if (ill(path)) return NULL;
    DIR *(*real)(const char *) = dlsym(RTLD_NEXT, "opendir");
    return real(path);
}

#define PREAD(name, offset_type) \
    ssize_t name(int file, void *data, size_t size, offset_type at) { \
        char link[64], path[4096]; \
        snprintf(link, sizeof link, "/proc/self/fd/%d", file); \
        ssize_t length = getenv("ILL_FLAG") ? readlink(link, path, sizeof path - 1) : -1; \
        if (length > 0) { path[length] = 0; if (ill(path)) return -1; } \
        ssize_t (*real)(int, void *, size_t, offset_type) = dlsym(RTLD_NEXT, #name); \
        return real(file, data, size, at); }
PREAD(pread, off_t) PREAD(pread64, off64_t)
