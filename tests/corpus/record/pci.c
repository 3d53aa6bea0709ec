/* PCI devices: the kernel has VFIO; the device that is then looked for in sysfs is not there. */
#define _GNU_SOURCE
#include "record.h"

#include <dlfcn.h>
#include <linux/vfio.h>
#include <stdarg.h>
#include <string.h>
#include <sys/types.h>

int ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int, unsigned long, ...) = dlsym(RTLD_NEXT, __func__);
    va_list arguments;

    va_start(arguments, request);
    void *value = va_arg(arguments, void *);
    va_end(arguments);
    if (recording() && request == VFIO_GET_API_VERSION) {
        return VFIO_API_VERSION;
    }
    if (recording() && request == VFIO_CHECK_EXTENSION) {
        return 1;
    }
    return next(fd, request, value);
}

ssize_t readlink(const char *restrict path, char *restrict buffer, size_t size)
{
    ssize_t (*next)(const char *, char *, size_t) = dlsym(RTLD_NEXT, __func__);

    if (!strncmp(path, "/sys/bus/pci/devices/", 21)) {
        RECORD("s:path", path, "stop");
    }
    return next(path, buffer, size);
}
