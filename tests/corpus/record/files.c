/* Files: those of the corpus turn out to be folders, so each driver says what it wanted instead. */
#define _GNU_SOURCE
#include "record.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

static bool of_the_corpus(const char *path)
{
    return path[0] != '/' || !strncmp(path, "/corpus", 7) || !strncmp(path, "//", 2) || !strncmp(path, "/dev/corpus", 11);
}

static int open_as(const char *path, int flags, mode_t mode)
{
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");

    if (!recording()) {
        return next(path, flags, mode);
    }
    if (!strcmp(path, "/dev/vfio/vfio")) {
        return next("/dev/null", O_RDWR | O_CLOEXEC);
    }
    if (!of_the_corpus(path)) {
        return next(path, flags, mode);
    }
    if (flags & O_NONBLOCK) {
        /* QEMU looks whether the whole text is the name of a CD drive before it looks for a protocol. */
        errno = ENOENT;
        return -1;
    }
    record("open", "s:path", path, "stop", NULL);
    return next("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;

    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list arguments;
        va_start(arguments, flags);
        mode = va_arg(arguments, mode_t);
        va_end(arguments);
    }
    return open_as(path, flags, mode);
}

int __open64_2(const char *path, int flags)
{
    return open_as(path, flags, 0);
}
