/* libblkio: the library checks what it is told, and is stopped where it would open the device. */
#include "record.h"

#include <errno.h>

int blkio_create(const char *driver, void **handle)
{
    int (*next)(const char *, void **) = behind("libblkio", __func__);

    RECORD("s:driver", driver);
    return next(driver, handle);
}

int blkio_set_str(void *handle, const char *name, const char *value)
{
    int (*next)(void *, const char *, const char *) = behind("libblkio", __func__);

    RECORD("s:name", name, "s:value", value);
    return next(handle, name, value);
}

int blkio_set_bool(void *handle, const char *name, bool value)
{
    int (*next)(void *, const char *, bool) = behind("libblkio", __func__);

    RECORD("s:name", name, "d:value", (long)value);
    return next(handle, name, value);
}

int blkio_connect(void *handle)
{
    (void)handle;
    record(__func__, "stop", NULL);
    return -ECONNREFUSED;
}
